"""From a spec and a file of weights to a network that maps normalised pixels to vectors."""

import importlib
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from visual_search.errors import ModelError, WeightsError
from visual_search.models.spec import ModelSpec

_INPUT: Final = "input:"
# Heads that only training uses. Published weights hold them, others may not.
_TRAINING_HEADS: Final = {"inception_v3": ("AuxLogits.",), "googlenet": ("aux1.", "aux2.")}
# DenseNet's published weights are older than the rule that names of modules have no dots.
_OLD_DENSENET: Final = re.compile(r"(?<=\.)(norm|conv)\.([12])(?=\.\w+$)")
# What torch throws over files that are no checkpoint, or one that only code could read.
_TORCH_ERRORS: Final = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


class _EndReached(Exception):  # noqa: N818 - not an error: how a forward pass is left half-way
    """The network ran up to its `_End`."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors


class _End(nn.Module):
    """Stands for the module whose input is the vector: neither it nor what follows runs.

    In an export, what follows is written down, too, and then left out as nobody needs it.
    """

    def forward(self, layer_input: Tensor, *_others: object) -> Tensor:
        if torch.compiler.is_exporting():
            return layer_input
        raise _EndReached(_vectors(layer_input))


class VectorNetwork(nn.Module):
    """A network, and the place in it where the vector is taken.

    `forward` maps `(B, 3, S, S)` to `(B, D)` float32; a `(B, D, H, W)` layer is averaged over
    H and W. A layer that runs several times counts with its last output, or its first input.
    """

    def __init__(self, network: nn.Module, layer: str | None) -> None:
        super().__init__()
        self.network = network
        self._layer = layer

    def forward(self, images: Tensor) -> Tensor:
        if self._layer is None:
            return _vectors(self.network(images))
        caught: list[Tensor] = []
        layer = self.network.get_submodule(self._layer)
        with layer.register_forward_hook(
            # At once, since the next module may work in place.
            lambda _module, _args, output: caught.append(_vectors(output))
        ):
            try:
                self.network(images)
            except _EndReached as reached:
                return reached.vectors
        if not caught:
            raise ModelError(f"layer {self._layer!r} takes no part when the network runs")
        return caught[0 if isinstance(layer, _End) else -1]


def load_network(spec: ModelSpec, weights: Path | None) -> VectorNetwork:
    """The network of a model, in main memory, fp32, in eval mode.

    Args:
        spec: What to build.
        weights: The file, already checked against the spec; `None` where the spec needs none.

    Raises:
        ModelError: The builder fails, or the network has no such layer.
        WeightsError: The file is no checkpoint, or one of another network.
    """
    with torch.random.fork_rng(devices=[], enabled=spec.seed is not None):
        if spec.seed is not None:
            torch.manual_seed(spec.seed)
        network = _build(spec)
    layer, unused = _open_at(spec, network)
    if weights is not None:
        _load_weights(spec, network, weights, unused)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return VectorNetwork(network.float(), layer).eval()


def _build(spec: ModelSpec) -> nn.Module:
    if spec.torchvision_name is None:
        return _built_by_entry(spec)
    options: dict[str, bool] = {}
    if spec.torchvision_name in _TRAINING_HEADS:
        # Both were trained on pixels in [-1, 1], and turn ImageNet's normalisation into that.
        options = {"aux_logits": False, "init_weights": False, "transform_input": True}
    # Where weights follow, nothing is drawn at random first: that takes seconds for large
    # networks. RegNet reads a tensor while it is built, so it needs real ones.
    real = spec.seed is not None or spec.torchvision_name.startswith("regnet")
    with torch.device("cpu" if real else "meta"):
        network: nn.Module = torchvision.models.get_model(
            spec.torchvision_name, weights=None, **options
        )
    return network


def _built_by_entry(spec: ModelSpec) -> nn.Module:
    module, _, function = spec.builder.partition(":")
    try:
        network = getattr(importlib.import_module(module), function)()
    except ModelError:
        raise
    except Exception as error:
        # The user's code may raise anything.
        raise ModelError(
            f"builder {spec.builder!r} of model {spec.name!r} fails: {_one_line(error)}; it must "
            "be importable (see PYTHONPATH) and callable without arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"builder {spec.builder!r} of model {spec.name!r} returns a {type(network).__name__}, "
            "not a torch.nn.Module"
        )
    return network


def _open_at(spec: ModelSpec, network: nn.Module) -> tuple[str | None, tuple[str, ...]]:
    """Prepare the layer whose output is the vector.

    Of an input layer, the module goes, so that a checkpoint may hold any head there, such as one
    for other classes.

    Returns:
        The layer, and the prefixes of weights that are not used.
    """
    unused = _TRAINING_HEADS.get(spec.torchvision_name or "", ())
    if spec.layer is None:
        return None, unused
    layer = spec.layer.removeprefix(_INPUT)
    try:
        network.get_submodule(layer)
    except AttributeError:
        names = ", ".join(name for name, _ in network.named_children())
        raise ModelError(
            f"model {spec.name!r} has no layer {layer!r}; its outermost ones are {names}"
        ) from None
    if layer != spec.layer:
        network.set_submodule(layer, _End())
        unused = (*unused, f"{layer}.")
    return layer, unused


def _load_weights(spec: ModelSpec, network: nn.Module, path: Path, unused: tuple[str, ...]) -> None:
    state = _read(path)
    # Versions of modules, by which they understand older files; safetensors has none.
    metadata = getattr(state, "_metadata", network.state_dict()._metadata)  # type: ignore[attr-defined] # noqa: SLF001 - where torch keeps it
    kept = OrderedDict(
        (_OLD_DENSENET.sub(r"\1\2", key) if "denselayer" in key else key, value)
        for key, value in state.items()
        if not key.startswith(unused)
    )
    kept._metadata = metadata  # type: ignore[attr-defined] # noqa: SLF001
    try:
        missing, unexpected = network.load_state_dict(kept, strict=False, assign=True)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} does not fit {spec.builder}: {_one_line(error)}") from None
    differences = [
        f"{len(keys)} {what} keys, the first {keys[0]!r}"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if differences:
        raise WeightsError(
            f"{path} is not a state dict of {spec.builder}: {' and '.join(differences)}"
        )


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                # torch warns of pickles it may not read; those it does not read are errors below.
                warnings.simplefilter("ignore", UserWarning)
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (*_TORCH_ERRORS, SafetensorError) as error:
        raise WeightsError(
            f"{path} is no checkpoint that can be read without running code from it: "
            f"{_one_line(error)}; save the state dict as .safetensors"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        keys = ", ".join(map(str, list(state)[:5])) if isinstance(state, Mapping) else "no keys"
        raise WeightsError(
            f"{path} holds {keys} instead of a network's tensors; save network.state_dict() alone"
        )
    return state


def _vectors(output: object) -> Tensor:
    """`(B, D)` float32, in memory of its own."""
    match output:
        case Tensor(ndim=2):
            return output.to(torch.float32, copy=True)
        case Tensor(ndim=4):
            return output.float().mean(dim=(2, 3))
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ModelError(f"the layer gives {shape}, not (images, dim) or (images, dim, height, width)")


def _one_line(error: BaseException) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
