"""Before a run: which model a name stands for, whether it has anything to do, and its weights."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from visual_search import claim, failures, models, record, status
from visual_search.database.connection import Database
from visual_search.errors import ModelError, RunError
from visual_search.models import registry, weights
from visual_search.models.artefacts import obtain_artefact
from visual_search.models.registry import RegisteredModel
from visual_search.models.runtimes import check_runtime
from visual_search.models.spec import ModelPrecision, ModelSpec
from visual_search.pipeline import quantise
from visual_search.pipeline.checks import Checks, begin_checks, count_checks
from visual_search.pipeline.results import ModelResult
from visual_search.refresh import Refresh
from visual_search.settings import Settings
from visual_search.shard import prepare_output
from visual_search.storage import open_storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A model that has something to do, and its file of weights, if it needs one."""

    model: RegisteredModel
    weights: Path | None
    refresh: Refresh | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `extract` would do for a model: how many images it could claim, or check, now.

    Attributes:
        model_id: `None` where the model would be quantised first.
    """

    model: str
    model_id: str | None
    claimable: int


def plan(
    database: Database, settings: Settings, name: str, *, checks: Checks | None = None
) -> Plan:
    """What `extract` would do for a model; nothing is changed, nothing loaded."""
    spec = resolve_model(database, settings, name)
    asked = settings.embed.precision != "auto"

    def step(connection: Connection) -> int | None:
        known = registry.admit(connection, spec, asked=asked)
        if checks is not None:
            return 0 if known is None else count_checks(connection, known, checks)
        return None if known is None else status.count_claimable(connection, known.model_key)

    claimable = database.run(step)
    return Plan(
        model=name,
        model_id=None if spec.awaits_quantisation else spec.model_id,
        claimable=status.count_images(database) if claimable is None else claimable,
    )


def resolve_model(database: Database, settings: Settings, name: str) -> ModelSpec:
    """The spec a name stands for, here and now.

    Precision: as asked for; else that of the active model; else as its table says; else what this
    device does fast. Torch is imported only in the last case. Of int8, it is a recipe until a model
    was made by it.

    Raises:
        ModelError: There is no such model, or not in this precision.
        SettingsError: The runtime asked for cannot compute it.
    """
    precision = _precision(database, settings, name)
    spec = models.resolve(name, settings.models, precision=precision, home=settings.home)
    if precision == "int8" != spec.precision:
        raise ModelError(
            f"the table of {name!r} says precision = {spec.precision!r}; take that line out of it "
            "for --precision int8"
        )
    asked = settings.embed
    check_runtime(spec.precision, asked.runtime, asked.device, compiled=asked.compile)
    return quantise.find_quantised(database, spec) if precision == "int8" else spec


def _precision(database: Database, settings: Settings, name: str) -> ModelPrecision:
    asked = settings.embed.precision
    if asked != "auto":
        return asked
    active = database.run(lambda connection: registry.active(connection, name))
    if active is not None:
        return active.spec.precision
    stated = models.find_table(name, settings.models).precision
    if stated != "auto":
        return stated
    from visual_search import embed  # noqa: PLC0415 - imports torch

    device = embed.choose_device(settings.embed.device)
    return "bf16" if embed.does_bf16_fast(device) else "fp32"


def prepare_model(
    database: Database,
    settings: Settings,
    name: str,
    *,
    retry_failed: bool,
    checks: Checks | None,
) -> Ready | ModelResult:
    """Register a model and get its weights; a result if it has nothing to do, or cannot."""
    try:
        asked = settings.embed.precision != "auto"
        spec = resolve_model(database, settings, name)
        storage = open_storage(settings.output_uri, settings.storage)
        known = database.run(lambda c: registry.admit(c, spec, asked=asked))
        if checks is not None and known is None:
            return ModelResult(model=name, checked=True)
        if known is None:
            # A model whose weights cannot be had is not registered.
            weights.obtain(spec, settings.weights, home=settings.home)
            # Another machine may have registered the name meanwhile, at its own fast precision.
            spec = resolve_model(database, settings, name)
            if spec.awaits_quantisation:
                spec = quantise.make_quantised(database, settings, spec, storage)
        model = database.run(lambda c: registry.register(c, spec, asked=asked))
        if retry_failed:
            database.run(lambda c: failures.retry_failed(c, model_key=model.model_key))
        begun = None
        if checks is not None:
            begun = begin_checks(database, model, checks)
            if begun is None:
                return ModelResult(model=name, model_id=model.model_id, checked=True)
        else:
            idle = _nothing_to_do(database, settings, model)
            if idle is not None:
                return idle
        if spec.precision == "int8":
            path: Path | None = obtain_artefact(storage, spec, home=settings.home)
        else:
            path = weights.obtain(spec, settings.weights, home=settings.home)
        prepare_output(storage, database.run(record.catalogue_id))
    except RunError as error:
        return ModelResult(
            model=name,
            checked=checks is not None,
            exit_code=error.exit_code,
            error=str(error),
        )
    return Ready(model=model, weights=path, refresh=begun)


def _nothing_to_do(
    database: Database, settings: Settings, model: RegisteredModel
) -> ModelResult | None:
    """The result of a run that need not start; no model is loaded to find out."""

    def step(connection: Connection) -> ModelResult | None:
        claim.rescue_images(connection, model.model_key, lease_s=settings.extract.lease_s)
        if claim.is_behind(connection, model.model_key):
            return None
        outlook = claim.look_out(connection, model.model_key)
        soon = outlook.next_in_s
        if soon is not None and soon <= settings.extract.wait_s:
            return None
        return ModelResult(
            model=model.name,
            model_id=model.model_id,
            waiting=claim.count_pending(connection, model.model_key),
            due_in_s=outlook.due_in_s,
            any_failed=status.has_failures(connection, model.model_key),
        )

    return database.run(step)
