"""What a model is, down to everything that changes its vectors, and the id that follows from it."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, Final, Literal

from visual_search.redaction import redact_url

PREPROCESSING_VERSION: Final = 1
"""Raised when the same settings make other pixels or another vector than before."""

ModelPrecision = Literal["fp32", "bf16", "int8"]

_TORCHVISION: Final = "torchvision:"
_PUBLISHED: Final = re.compile(r"[\w.-]+-(?P<digest>[0-9a-f]{8,64})\.pth")
_ID_DIGITS: Final = 10
# A draft that is to be made smaller by half at least still looks like the picture.
_DRAFT_OVERSAMPLING: Final = 2


class WeightsKind(Enum):
    """Where a model's weights come from."""

    PUBLISHED = "a file that torchvision publishes; its name carries how its sha256 begins"
    FILE = "a path"
    URL = "an address, with its sha256"
    PACKAGE = "a file inside an installed Python package"
    BUILDER = "the builder returns a network that has them"
    RANDOM = "none: drawn at random from a seed, for tests and benchmarks"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How decoded pixels become the network's input.

    Attributes:
        resize: `squash` to `size` x `size`; or the shorter edge to `shortest_edge`, then the
            `size` x `size` pixels in the middle.
        mean: Of red, green and blue, for pixels from 0 to 1.
        std: Likewise.
    """

    resize: Literal["squash", "shortest_edge+center_crop"]
    size: int
    shortest_edge: int | None
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    version: int = PREPROCESSING_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A model. Two specs that could give different vectors have different ids.

    Attributes:
        builder: `torchvision:NAME`, or a Python entry `package.module:function`.
        revision: Of a Python entry, whose code no digest sees; its author raises it.
        weights: As the user wrote it; `weights_kind` says how to read it.
        weights_sha256: Of the file; `None` for weights that another name identifies.
        decode: `draft` takes large JPEGs at a half, a quarter or an eighth of their size.
        layer: The module whose output is the vector, or `input:` and the module whose input is;
            `None` for the network's own output.
        stored: The type of the numbers in a shard.
        artefact_sha256: Of the quantised network, which an int8 model computes with. One that has
            none yet is only a recipe: what comes of it depends on the images it is made with.
    """

    name: str
    builder: str
    revision: str | None
    weights: str
    weights_sha256: str | None
    layer: str | None
    dim: int
    decode: Literal["exact", "draft"]
    preprocessing: Preprocessing
    normalize: bool
    precision: ModelPrecision
    stored: Literal["float32", "float16"]
    artefact_sha256: str | None = None

    @property
    def model_id(self) -> str:
        """Name and digest, of the characters `[a-z0-9._-]`. Random weights show in it."""
        canonical = json.dumps(self._identity(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:_ID_DIGITS]
        marks = [f"random{self.seed}"] if self.seed is not None else []
        return "-".join([self.name, *marks, digest])

    @property
    def torchvision_name(self) -> str | None:
        """The network's name in torchvision; `None` for a Python entry."""
        name = self.builder.removeprefix(_TORCHVISION)
        return None if name == self.builder else name

    @property
    def weights_kind(self) -> WeightsKind:
        """How to read `weights`."""
        return weights_kind(self.builder, self.weights)

    @property
    def awaits_quantisation(self) -> bool:
        """Whether it is only the recipe of an int8 model."""
        return self.precision == "int8" and self.artefact_sha256 is None

    @property
    def recipe(self) -> "ModelSpec":
        """The model before it was quantised; what was not quantised is its own recipe."""
        return replace(self, artefact_sha256=None)

    @property
    def needs_weights(self) -> bool:
        """Whether there has to be a file of weights."""
        return self.weights_kind not in (WeightsKind.BUILDER, WeightsKind.RANDOM)

    @property
    def seed(self) -> int | None:
        """Of random weights; `None` where they are real."""
        source, _, seed = self.weights.partition(":")
        return int(seed) if source == "random" else None

    @property
    def digest_begins(self) -> str:
        """How the sha256 of the file of weights must begin; nothing is known if empty."""
        if self.weights_sha256 is not None:
            return self.weights_sha256
        match = _PUBLISHED.fullmatch(self.weights)
        return match["digest"] if match and self.weights_kind is WeightsKind.PUBLISHED else ""

    @property
    def least_px(self) -> int | None:
        """How short a side may get where an image is decoded smaller; `None`: it must not be."""
        if self.decode == "exact":
            return None
        resized = self.preprocessing.shortest_edge or self.preprocessing.size
        return _DRAFT_OVERSAMPLING * resized

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the table and the shards keep them; no secrets of a URL."""
        plain = _without_unset_artefact(asdict(self))
        if self.weights_kind is WeightsKind.URL:
            plain["weights"] = redact_url(self.weights)
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "ModelSpec":
        """The spec of which `plain` was made, but for the secrets of a URL."""
        preprocessing = dict(plain["preprocessing"])
        preprocessing["mean"] = tuple(preprocessing["mean"])
        preprocessing["std"] = tuple(preprocessing["std"])
        return cls(**{**plain, "preprocessing": Preprocessing(**preprocessing)})

    def _identity(self) -> dict[str, Any]:
        """All that changes vectors: not the name, and of a file its digest, not its place."""
        parts = _without_unset_artefact(asdict(self))
        del parts["name"]
        digest = parts.pop("weights_sha256")
        if self.weights_kind is not WeightsKind.PUBLISHED:
            parts["weights"] = digest or self.weights
        return parts


def _without_unset_artefact(parts: dict[str, Any]) -> dict[str, Any]:
    """Models that are not quantised keep the ids, and the rows, they had before there were any."""
    return {key: value for key, value in parts.items() if (key, value) != ("artefact_sha256", None)}


def weights_kind(builder: str, weights: str) -> WeightsKind:
    """How to read `weights` of a model with this builder."""
    for kind in (WeightsKind.RANDOM, WeightsKind.PACKAGE):
        if weights.startswith(f"{kind.name.lower()}:"):
            return kind
    if weights == "builder":
        return WeightsKind.BUILDER
    if weights.startswith(("https://", "http://")):
        return WeightsKind.URL
    if builder.startswith(_TORCHVISION) and _PUBLISHED.fullmatch(weights):
        return WeightsKind.PUBLISHED
    return WeightsKind.FILE
