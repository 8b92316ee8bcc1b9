"""A model in fp32 to one in int8, which computes with a quarter of the bits, on processors only."""

import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from visual_search.embed.network import PixelNetwork, UnsuitableError
from visual_search.embed.openvino import converted, pack
from visual_search.errors import ModelError
from visual_search.models.loading import load_network
from visual_search.models.spec import ModelSpec


def quantise(spec: ModelSpec, weights: Path | None, pictures: Sequence[Tensor]) -> bytes:
    """The artefact of an int8 model; takes minutes.

    Args:
        spec: The recipe.
        weights: As for an `Embedder`.
        pictures: `(3, S, S)` uint8 each, as `prepare` makes them. They show between which values
            the numbers inside the network lie.

    Raises:
        ModelError: The network cannot be converted.
    """
    # Only after openvino, whose import above keeps both from telling anybody.
    import nncf  # noqa: PLC0415

    nncf.set_log_level(logging.ERROR)
    network = PixelNetwork(spec, load_network(spec, weights), torch.device("cpu"), torch.float32)
    try:
        model = converted(network, spec)
    except UnsuitableError as error:
        raise ModelError(
            f"model {spec.name!r} cannot be computed in int8: {error}; use another --precision"
        ) from error
    dataset = nncf.Dataset([picture.unsqueeze(0).numpy() for picture in pictures])
    # Its bars go to standard output, which is for results.
    with redirect_stdout(io.StringIO()):
        quantised = nncf.quantize(
            model,
            dataset,
            subset_size=len(pictures),
            # A minute longer, once: vectors find more of their neighbours in fp32.
            fast_bias_correction=False,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # Half of the range: older processors add up in 16 bits, and a model's vectors
                # must not depend on which processor of a fleet made them.
                overflow_fix=nncf.OverflowFix.ENABLE
            ),
        )
    return pack(quantised)
