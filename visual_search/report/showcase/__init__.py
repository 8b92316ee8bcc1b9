"""One model's work on one catalogue, with pictures of what its vectors find alike."""

from visual_search.report.showcase.gather import gather
from visual_search.report.showcase.render import render

__all__ = ["gather", "render"]
