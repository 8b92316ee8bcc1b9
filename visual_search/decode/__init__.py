"""Bytes → RGB pixels, in child processes. See docs/adr/0005-decode-in-child-processes.md."""

from visual_search.decode.budget import PixelBudget
from visual_search.decode.pixels import Picture, decode
from visual_search.decode.process import DecoderProcess

__all__ = ["DecoderProcess", "Picture", "PixelBudget", "decode"]
