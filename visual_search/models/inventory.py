"""All models there are: registered in the catalogue, in the user's tables, built in.

Nothing here imports torch, downloads, or reads a file of weights whose digest is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from visual_search.errors import ModelError, WeightsError
from visual_search.models import weights
from visual_search.models.registry import RegisteredModel
from visual_search.models.spec import ModelPrecision, ModelSpec
from visual_search.models.tables import built_ins, resolve
from visual_search.settings import ModelTable, Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedModel:
    """A model, registered or not.

    Attributes:
        origin: Who knows it: the catalogue, or else whose table it is.
        model_id: `None` where its table is wrong, where weights are missing that make the id, or
            where it is to be quantised first.
        spec: `None` in the first two of these cases.
        dim: `None` where its table does not say.
        weights: The file, if it is here; its content was not looked at.
        problem: Why there is no spec, or why its weights are not here and cannot be downloaded.
    """

    name: str
    model_id: str | None
    origin: Literal["registered", "configured", "built_in"]
    active: bool
    spec: ModelSpec | None
    dim: int | None
    weights: Path | None
    problem: str | None

    @property
    def state(self) -> str:
        """For people, in one or two words."""
        return "active" if self.active else self.origin.replace("_", " ")

    @property
    def weights_state(self) -> str:
        """For people, in one or two words."""
        if self.problem is not None:
            return "missing"
        if self.weights is not None:
            return "here"
        needed = self.spec is None or self.spec.needs_weights
        return "not downloaded" if needed else "none needed"


def list_models(
    known: Sequence[RegisteredModel],
    tables: Mapping[str, ModelTable],
    *,
    precision: Precision,
    home: Path,
) -> list[ListedModel]:
    """The registered ones first, then the user's own, then the built-in ones, each in its order.

    A name appears once for each registered model, and once more if its table now makes another.

    Args:
        known: The catalogue's.
        tables: The user's own.
        precision: Of models that are not registered, unless their tables state one. `auto` is
            that of the name's registered models, else fp32, since no device is looked at.
        home: Where downloaded weights are.
    """
    listed = [registered_model(model, home=home) for model in known]
    ids = {spec.model_id for model in known for spec in (model.spec, model.spec.recipe)}
    for name in [*tables, *(name for name in built_ins() if name not in tables)]:
        fixed = precision if precision != "auto" else known_precision(known, name) or "fp32"
        try:
            spec = resolve(name, tables, precision=fixed, home=home)
        except (ModelError, WeightsError) as error:
            listed.append(_unresolved_model(name, tables, str(error)))
            continue
        if spec.model_id not in ids:
            listed.append(unregistered_model(spec, tables, home=home))
    return listed


def registered_model(model: RegisteredModel, *, home: Path) -> ListedModel:
    """One of the catalogue's."""
    path, problem = _weights(model.spec, home=home)
    return ListedModel(
        name=model.name,
        model_id=model.model_id,
        origin="registered",
        active=model.active,
        spec=model.spec,
        dim=model.dim,
        weights=path,
        problem=problem,
    )


def unregistered_model(
    spec: ModelSpec, tables: Mapping[str, ModelTable], *, home: Path
) -> ListedModel:
    """One that the catalogue does not know."""
    path, problem = _weights(spec, home=home)
    return ListedModel(
        name=spec.name,
        # What is to be quantised yet will have another one.
        model_id=None if spec.awaits_quantisation else spec.model_id,
        origin=_origin(spec.name, tables),
        active=False,
        spec=spec,
        dim=spec.dim,
        weights=path,
        problem=problem,
    )


def _unresolved_model(name: str, tables: Mapping[str, ModelTable], problem: str) -> ListedModel:
    return ListedModel(
        name=name,
        model_id=None,
        origin=_origin(name, tables),
        active=False,
        spec=None,
        dim={**built_ins(), **tables}[name].dim,
        weights=None,
        problem=problem,
    )


def _origin(name: str, tables: Mapping[str, ModelTable]) -> Literal["configured", "built_in"]:
    return "configured" if name in tables else "built_in"


def known_precision(known: Sequence[RegisteredModel], name: str) -> ModelPrecision | None:
    """That of a name's active model, else of its newest one; `None` if it has none."""
    namesakes = [model for model in known if model.name == name]
    newest = max(namesakes, key=lambda model: (model.active, model.model_key), default=None)
    return None if newest is None else newest.spec.precision


def _weights(spec: ModelSpec, *, home: Path) -> tuple[Path | None, str | None]:
    """The file, and why there is none."""
    try:
        return weights.locate(spec, home=home), None
    except WeightsError as error:
        return None, str(error)
