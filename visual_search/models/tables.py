"""From a model's name to its spec: what ships in `configs/models.toml`, and the user's own tables.

Nothing here imports torch: a run that finds nothing to do must not wait for it.
"""

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Final

from visual_search.errors import ModelError
from visual_search.models.digests import sha256_of
from visual_search.models.spec import (
    ModelPrecision,
    ModelSpec,
    Preprocessing,
    WeightsKind,
    weights_kind,
)
from visual_search.models.weights import local_file
from visual_search.settings import ModelTable

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ENTRY: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_RANDOM: Final = re.compile(r"random:\d{1,18}")
# Keys that mean nothing without each other: who states one, takes none of them from a built-in.
_TOGETHER: Final = ({"weights", "weights_sha256"}, {"resize", "shortest_edge"})


def resolve(
    name: str,
    tables: Mapping[str, ModelTable],
    *,
    precision: ModelPrecision,
    home: Path,
) -> ModelSpec:
    """The spec a name stands for.

    Args:
        name: Of one of `tables`, or of a built-in model.
        tables: The user's own; they go before built-ins of the same name.
        precision: What it is unless the table states one; of int8, the spec is a recipe.
        home: Digests of weights are remembered there.

    Raises:
        ModelError: The name is unknown, its table is incomplete or contradicts itself, or the
            `model_id` it states is not what the rest of it makes.
        WeightsError: Weights on this machine whose digest makes the id are not there.
    """
    table = find_table(name, tables)
    weights = _checked_weights(name, table)
    sha256 = table.weights_sha256
    kind = weights_kind(table.builder, weights)
    if sha256 is None and kind in (WeightsKind.FILE, WeightsKind.PACKAGE):
        sha256 = sha256_of(local_file(name, weights), home=home)
    spec = ModelSpec(
        name=name,
        builder=table.builder,
        revision=_checked_revision(name, table),
        weights=weights,
        weights_sha256=sha256,
        layer=table.layer,
        dim=_checked_dim(name, table),
        decode=table.decode,
        preprocessing=_preprocessing(name, table),
        normalize=table.normalize,
        precision=precision if table.precision == "auto" else table.precision,
        stored=table.stored,
    )
    if table.model_id not in (None, spec.model_id):
        raise ModelError(
            f"model {name!r} states model_id = {table.model_id!r}, but what it says makes "
            f"{spec.model_id!r}; take back the change, or state the new id"
        )
    return spec


def resolve_id(model_id: str, tables: Mapping[str, ModelTable], *, home: Path) -> ModelSpec | None:
    """The spec that makes this id, in one precision or the other; `None` if no table does.

    Raises:
        ModelError: As of `resolve`, for a table whose name the id begins with.
        WeightsError: Likewise.
    """
    names = [name for name in {**built_ins(), **tables} if model_id.startswith(f"{name}-")]
    precisions: tuple[ModelPrecision, ...] = ("fp32", "bf16")
    for name in sorted(names, key=len, reverse=True):
        for precision in precisions:
            spec = resolve(name, tables, precision=precision, home=home)
            if spec.model_id == model_id:
                return spec
    return None


def find_table(name: str, tables: Mapping[str, ModelTable]) -> ModelTable:
    """The whole table of a model.

    A table of the user's with the builder of a built-in model takes from that what it does not
    say itself.

    Raises:
        ModelError: There is no model of this name.
    """
    if name not in tables:
        if name not in built_ins():
            raise ModelError(_unknown(name, {**built_ins(), **tables}))
        return built_ins()[name]
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"model name {name!r} cannot be part of an id; use at most 64 of a-z, 0-9, '.', '_' "
            "and '-'"
        )
    own = tables[name].model_dump(exclude_unset=True)
    alike = (table for table in built_ins().values() if table.builder == own["builder"])
    base = next((table.model_dump(exclude_unset=True) for table in alike), {})
    for keys in _TOGETHER:
        if keys & own.keys():
            base = {key: value for key, value in base.items() if key not in keys}
    return ModelTable.model_validate({**base, **own})


@cache
def built_ins() -> Mapping[str, ModelTable]:
    """The models that ship, by name."""
    with _models_file().open("rb") as file:
        tables = tomllib.load(file)["models"]
    return {name: ModelTable.model_validate(table) for name, table in tables.items()}


def _models_file() -> Path:
    """Beside the package where it is installed, one folder up in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "configs" / "models.toml"
    return inside if inside.exists() else package.parent / "configs" / "models.toml"


def _unknown(name: str, known: Mapping[str, ModelTable]) -> str:
    close = get_close_matches(name.lower(), known, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown model {name!r}; {hint}`vsearch models list` shows all"


def _checked_weights(name: str, table: ModelTable) -> str:
    weights = table.weights
    if weights is None:
        raise ModelError(
            f"model {name!r} says no weights; set weights to a path, to a URL with "
            'weights_sha256, or to "builder" if its builder loads them itself'
        )
    kind = weights_kind(table.builder, weights)
    if kind is WeightsKind.FILE and "://" in weights:
        scheme = weights.partition(":")[0]
        raise ModelError(
            f"model {name!r}: weights come by http, https or from a path, not {scheme}:"
        )
    if kind is WeightsKind.RANDOM and not _RANDOM.fullmatch(weights):
        raise ModelError(f"model {name!r}: weights = {weights!r} needs a number: random:0")
    if kind is WeightsKind.URL and table.weights_sha256 is None:
        raise ModelError(f"model {name!r}: weights from a URL need weights_sha256 beside them")
    return weights


def _checked_revision(name: str, table: ModelTable) -> str | None:
    """Of a Python entry, whose builder is checked too; torchvision's networks have none."""
    if table.builder.startswith("torchvision:"):
        if all(table.builder != known.builder for known in built_ins().values()):
            close = [f"torchvision:{n}" for n in built_ins()]
            hint = " or ".join(get_close_matches(table.builder, close, n=3))
            raise ModelError(
                f"model {name!r}: unknown builder {table.builder!r}"
                + (f"; did you mean {hint}?" if hint else "")
            )
        return None
    if not _ENTRY.fullmatch(table.builder):
        raise ModelError(
            f"model {name!r}: builder {table.builder!r} is neither torchvision:NAME nor "
            "package.module:function"
        )
    if not table.revision:
        raise ModelError(
            f'model {name!r}: a builder of your own needs a revision, such as revision = "1"; '
            "raise it whenever its code changes the vectors"
        )
    return table.revision


def _checked_dim(name: str, table: ModelTable) -> int:
    if table.dim is None:
        raise ModelError(f"model {name!r}: say how long its vectors are, such as dim = 512")
    return table.dim


def _preprocessing(name: str, table: ModelTable) -> Preprocessing:
    if (table.resize == "squash") != (table.shortest_edge is None):
        raise ModelError(
            f"model {name!r}: shortest_edge goes with resize = "
            '"shortest_edge+center_crop", and only with it'
        )
    if not all(table.std):
        raise ModelError(f"model {name!r}: std must not be 0")
    return Preprocessing(
        resize=table.resize,
        size=table.size,
        shortest_edge=table.shortest_edge,
        interpolation=table.interpolation,
        mean=table.mean,
        std=table.std,
    )
