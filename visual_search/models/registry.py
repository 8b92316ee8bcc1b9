"""Which models a catalogue knows, and which of them a name stands for.

A name has at most one active model: the one that `extract --model NAME`, `--all-models` and
`status` mean. Another spec under the name is another model, and nothing changes silently which of
them is meant: `models activate` does. A named precision may run beside the active model.

Every function is one step inside the caller's short transaction.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, text

from visual_search.errors import InternalError, ModelError
from visual_search.images import ModelKey
from visual_search.models.spec import ModelSpec

# First half of a transaction-level advisory lock; the second is the name's hash. Whoever changes
# what a name stands for holds it.
REGISTRATION_LOCK: Final = 0x76_73_65_62
# Likewise; whoever quantises a model of the name, which takes a minute in which the name is free
# for everything else.
QUANTISATION_LOCK: Final = 0x76_73_65_65


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredModel:
    """A model as the table has it; its extractions are the partition of its key.

    Attributes:
        model_key: The same for as long as the catalogue lives; the id in all other tables.
        active: Whether its name stands for it.
    """

    model_key: ModelKey
    name: str
    model_id: str
    active: bool
    dim: int
    spec: ModelSpec
    created_at: datetime


def registered(connection: Connection) -> list[RegisteredModel]:
    """All models, by name, then in the order they came."""
    rows = connection.execute(
        text("""
            SELECT model_key, name, model_id, active, dim, spec, created_at FROM models
            ORDER BY name, model_key
        """)
    )
    return [_from_row(row) for row in rows]


def active(connection: Connection, name: str) -> RegisteredModel | None:
    """The one that a name stands for."""
    return next(
        (model for model in registered(connection) if model.active and model.name == name), None
    )


def find_quantised(known: Sequence[RegisteredModel], recipe: ModelSpec) -> RegisteredModel | None:
    """The int8 model that was made by this recipe in this catalogue, if there is one."""
    return next(
        (
            model
            for model in known
            if model.spec.artefact_sha256 is not None
            and model.spec.recipe.model_id == recipe.model_id
        ),
        None,
    )


def check_known(connection: Connection, model: str | None) -> None:
    """Look whether a model that the user named, by name or id, has run on this catalogue.

    Raises:
        ModelError: It has not.
    """
    known = connection.execute(
        text("""
            SELECT CAST(:model AS text) IS NULL
                OR EXISTS (SELECT FROM models WHERE :model IN (name, model_id))
        """),
        {"model": model},
    ).scalar_one()
    if not known:
        raise ModelError(f"model {model!r} has not run on this catalogue; see `vsearch status`")


def find(connection: Connection, model_id: str) -> RegisteredModel | None:
    """The one with this id, active or not."""
    return next((model for model in registered(connection) if model.model_id == model_id), None)


def admit(connection: Connection, spec: ModelSpec, *, asked: bool) -> RegisteredModel | None:
    """Whether a run may use this spec: the registered model, `None` if it is still to register.

    It may if its name stands for it, or for nothing yet. If the name stands for another model, it
    may only where that is what the user said: another precision, and nothing but the precision.

    Args:
        connection: In a transaction.
        spec: As the name's table makes it here and now.
        asked: The user named the precision.

    Raises:
        ModelError: The name stands for another model, or its models are all retired.
    """
    namesakes = [model for model in registered(connection) if model.name == spec.name]
    known = next((model for model in namesakes if model.model_id == spec.model_id), None)
    current = next((model for model in namesakes if model.active), None)
    if current is None:
        if namesakes:
            raise ModelError(
                f"model {spec.name!r} is retired; `vsearch models activate {spec.model_id}` "
                "takes it into use again"
            )
        return None
    if current is known or (asked and _same_but_for_precision(current.spec, spec)):
        return known
    raise ModelError(
        f"{spec.name!r} stands for {current.model_id} in this catalogue, but its table now makes "
        f"{spec.model_id}, another model ({_differences(current.spec, spec)}); take back the "
        f"change, or `vsearch models activate {spec.model_id}`"
    )


def register(connection: Connection, spec: ModelSpec, *, asked: bool) -> RegisteredModel:
    """The registered model of a spec, registered now if it is new; any number of callers at once.

    The first of its name becomes active; another precision that was asked for does not.

    Raises:
        ModelError: As of `admit`.
    """
    _lock(connection, spec.name)
    return admit(connection, spec, asked=asked) or add(connection, spec)


def add(connection: Connection, spec: ModelSpec) -> RegisteredModel:
    """Register a spec whatever its name stands for; active only if it is the first of its name."""
    _lock(connection, spec.name)
    known = find(connection, spec.model_id)
    if known is not None:
        return known
    row = connection.execute(
        text("""
            INSERT INTO models (name, model_id, active, dim, spec, weights_sha256)
            SELECT :name, :model_id, NOT EXISTS (SELECT FROM models WHERE name = :name), :dim,
                   CAST(:spec AS jsonb), :weights_sha256
            RETURNING model_key, name, model_id, active, dim, spec, created_at
        """),
        {
            "name": spec.name,
            "model_id": spec.model_id,
            "dim": spec.dim,
            "spec": json.dumps(spec.to_json()),
            "weights_sha256": spec.weights_sha256,
        },
    ).one()
    model = _from_row(row)
    _make_partition(connection, model.model_key)
    return model


def activate(connection: Connection, model: RegisteredModel) -> RegisteredModel | None:
    """Let the model's name stand for it.

    Returns:
        What the name stood for before, `None` if for nothing.
    """
    _lock(connection, model.name)
    before = active(connection, model.name)
    if before is not None and before.model_key == model.model_key:
        return before
    # Not both in one statement: the index of active names is checked row by row.
    connection.execute(
        text("UPDATE models SET active = false WHERE name = :name AND active"),
        {"name": model.name},
    )
    changed = connection.execute(
        text("UPDATE models SET active = true WHERE model_key = :model_key AND NOT active"),
        {"model_key": model.model_key},
    ).rowcount
    if changed != 1:
        raise InternalError(f"{changed} models became active, not {model.model_id} alone")
    return before


def retire(connection: Connection, model: RegisteredModel) -> bool:
    """Let the model's name stand for nothing. Its vectors and its history stay.

    Returns:
        Whether the name stood for it.
    """
    _lock(connection, model.name)
    changed = connection.execute(
        text("UPDATE models SET active = false WHERE model_key = :model_key AND active"),
        {"model_key": model.model_key},
    ).rowcount
    return changed == 1


def try_quantisation_lock(connection: Connection, name: str) -> bool:
    """Hold the right to quantise models of a name until the transaction ends, if nobody has it."""
    return bool(
        connection.execute(
            text("SELECT pg_try_advisory_xact_lock(:lock, hashtext(:name))"),
            {"lock": QUANTISATION_LOCK, "name": name},
        ).scalar_one()
    )


def _lock(connection: Connection, name: str) -> None:
    """Hold the name until the transaction ends. What was read before may be out of date."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:lock, hashtext(:name))"),
        {"lock": REGISTRATION_LOCK, "name": name},
    )


def _make_partition(connection: Connection, model_key: ModelKey) -> None:
    """Make the model's part of `extractions`.

    Made apart and then attached, since that lets others read and write the table meanwhile;
    CREATE TABLE … PARTITION OF would wait for all of them, and all who come after for it. The
    table's indexes come with attaching.
    """
    # Names cannot be parameters, so the server writes the statements and they are sent back to it.
    statements = connection.execute(
        text("""
            SELECT format('CREATE TABLE %1$I (LIKE extractions INCLUDING DEFAULTS '
                          'INCLUDING CONSTRAINTS INCLUDING STORAGE)', partition),
                   format('ALTER TABLE extractions ATTACH PARTITION %1$I FOR VALUES IN (%2$L)',
                          partition, model_key)
            FROM (SELECT CAST(:model_key AS integer) AS model_key,
                         'extractions_' || CAST(:model_key AS text) AS partition) AS named
        """),
        {"model_key": model_key},
    ).one()
    for statement in statements:
        connection.exec_driver_sql(statement)


def _same_but_for_precision(one: ModelSpec, other: ModelSpec) -> bool:
    alike = replace(one, precision=other.precision, artefact_sha256=other.artefact_sha256)
    return alike.model_id == other.model_id


def _differences(one: ModelSpec, other: ModelSpec) -> str:
    """Which parts of two specs differ, as `weights, size`."""
    parts, others = _parts(one), _parts(other)
    return ", ".join(key for key in others if parts.get(key) != others[key])


def _parts(spec: ModelSpec) -> dict[str, Any]:
    """The spec as flat as a table of the user's."""
    plain = spec.to_json()
    preprocessing = plain.pop("preprocessing")
    version = preprocessing.pop("version")
    return {**plain, **preprocessing, "preprocessing version": version}


def _from_row(row: Row[Any]) -> RegisteredModel:
    return RegisteredModel(
        model_key=ModelKey(row.model_key),
        name=row.name,
        model_id=row.model_id,
        active=row.active,
        dim=row.dim,
        spec=ModelSpec.from_json(row.spec),
        created_at=row.created_at,
    )
