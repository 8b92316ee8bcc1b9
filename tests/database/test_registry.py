"""What a name stands for, whoever registers, activates or retires at the same time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import Connection, text

from tests.catalogue import add_images, statuses
from visual_search import claim
from visual_search.database.connection import Database
from visual_search.errors import ExitCode, ModelError
from visual_search.models import registry
from visual_search.models.registry import RegisteredModel
from visual_search.models.spec import ModelSpec, Preprocessing

SPEC = ModelSpec(
    name="tiny",
    builder="tests.tiny_model:build",
    revision="1",
    weights="builder",
    weights_sha256=None,
    layer=None,
    dim=8,
    decode="exact",
    preprocessing=Preprocessing(
        resize="squash",
        size=32,
        shortest_edge=None,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    ),
    normalize=False,
    precision="fp32",
    stored="float32",
)
HALF = replace(SPEC, precision="bf16")
CHANGED = replace(SPEC, revision="2")


def register(database: Database, spec: ModelSpec, *, asked: bool = False) -> RegisteredModel:
    with database.transaction() as connection:
        return registry.register(connection, spec, asked=asked)


def refusal(database: Database, spec: ModelSpec, *, asked: bool = False) -> str:
    with pytest.raises(ModelError) as refused:
        register(database, spec, asked=asked)
    assert refused.value.exit_code is ExitCode.USAGE
    return str(refused.value)


def actives(database: Database) -> dict[str, bool]:
    with database.transaction() as connection:
        return {model.model_id: model.active for model in registry.registered(connection)}


@contextmanager
def second(database_url: str) -> Iterator[Database]:
    database = Database(database_url, schema="vsearch", outage_s=0)
    yield database
    database.close()


# --- what a run may use ---


def test_the_first_of_a_name_becomes_active_and_is_found_as_it_was(database: Database) -> None:
    model = register(database, SPEC)
    assert (model.active, model.name, model.dim) == (True, "tiny", 8)
    assert (model.model_id, model.spec) == (SPEC.model_id, SPEC)
    assert register(database, SPEC) == model
    with database.transaction() as connection:
        assert registry.active(connection, "tiny") == model
        assert registry.find(connection, SPEC.model_id) == model
        assert registry.find(connection, HALF.model_id) is None
        assert registry.active(connection, "other") is None


def test_a_precision_that_was_asked_for_runs_beside_the_active_model(database: Database) -> None:
    first = register(database, SPEC)
    beside = register(database, HALF, asked=True)
    assert (beside.active, beside.spec) == (False, HALF)
    assert register(database, HALF, asked=True) == beside
    assert actives(database) == {first.model_id: True, beside.model_id: False}


def test_a_precision_that_was_not_asked_for_is_refused(database: Database) -> None:
    register(database, SPEC)
    said = refusal(database, HALF)
    assert SPEC.model_id in said
    assert f"`vsearch models activate {HALF.model_id}`" in said
    assert "(precision)" in said
    register(database, HALF, asked=True)
    assert refusal(database, HALF) == said


@pytest.mark.parametrize("asked", [False, True])
def test_a_table_that_was_changed_is_refused_whatever_the_precision(
    database: Database, asked: bool
) -> None:
    register(database, SPEC)
    changed = replace(CHANGED, precision="bf16", preprocessing=replace(SPEC.preprocessing, size=64))
    said = refusal(database, changed, asked=asked)
    assert SPEC.model_id in said
    assert f"`vsearch models activate {changed.model_id}`" in said
    assert "(revision, precision, size)" in said
    assert actives(database) == {SPEC.model_id: True}


def test_names_do_not_concern_each_other(database: Database) -> None:
    register(database, SPEC)
    assert register(database, replace(CHANGED, name="other")).active


def test_admitting_changes_nothing(database: Database) -> None:
    with database.transaction() as connection:
        assert registry.admit(connection, SPEC, asked=False) is None
        assert registry.registered(connection) == []
    model = register(database, SPEC)
    with database.transaction() as connection:
        assert registry.admit(connection, SPEC, asked=False) == model
        assert registry.admit(connection, HALF, asked=True) is None
        with pytest.raises(ModelError):
            registry.admit(connection, HALF, asked=False)


# --- activate, retire ---


def test_activating_another_model_leaves_one_active(database: Database) -> None:
    register(database, SPEC)
    with database.transaction() as connection:
        changed = registry.add(connection, CHANGED)
        assert not changed.active
        before = registry.activate(connection, changed)
    assert before is not None
    assert before.model_id == SPEC.model_id
    assert actives(database) == {SPEC.model_id: False, CHANGED.model_id: True}
    assert register(database, CHANGED).active
    assert SPEC.model_id in refusal(database, SPEC)


def test_activating_what_is_active_changes_nothing(database: Database) -> None:
    model = register(database, SPEC)
    with database.transaction() as connection:
        assert registry.activate(connection, model) == model
    assert actives(database) == {SPEC.model_id: True}


@pytest.mark.parametrize("asked", [False, True])
def test_a_retired_model_runs_again_only_when_activated(database: Database, asked: bool) -> None:
    model = register(database, SPEC)
    with database.transaction() as connection:
        assert registry.retire(connection, model)
        assert not registry.retire(connection, model)
    assert actives(database) == {SPEC.model_id: False}
    for spec in (SPEC, HALF, CHANGED):
        said = refusal(database, spec, asked=asked)
        assert "retired" in said
        assert f"`vsearch models activate {spec.model_id}`" in said
    with database.transaction() as connection:
        assert registry.activate(connection, model) is None
    assert register(database, SPEC) == model


# --- the model's part of the history ---


def test_a_model_has_a_partition_with_the_indexes_and_rules_of_the_table(
    database: Database,
) -> None:
    model = register(database, SPEC)
    with database.transaction() as connection:
        of_table, of_partition = (
            set(
                connection.execute(
                    text("""
                        SELECT regexp_replace(pg_get_indexdef(indexrelid), '^.* USING', ''),
                               indisunique, indisvalid
                        FROM pg_index WHERE indrelid = CAST(:name AS regclass)
                    """),
                    {"name": name},
                ).all()
            )
            for name in ("extractions", f"extractions_{model.model_key}")
        )
        assert of_partition == of_table
        assert len(of_table) == 5
        rules = [
            set(
                connection.execute(
                    text("""
                        SELECT pg_get_constraintdef(oid) FROM pg_constraint
                        WHERE conrelid = CAST(:name AS regclass)
                    """),
                    {"name": name},
                ).scalars()
            )
            for name in ("extractions", f"extractions_{model.model_key}")
        ]
        assert rules[0] == rules[1]
    add_images(database, 3)
    with database.transaction() as connection:
        claim.seed_images(connection, model.model_key)
        there = connection.execute(
            text("SELECT DISTINCT CAST(tableoid AS regclass)::text FROM extractions")
        ).scalars()
        assert list(there) == [f"extractions_{model.model_key}"]
    assert statuses(database, model.model_key) == {"pending": 3}


# --- at the same time ---


def test_two_that_register_a_model_at_once_get_the_same_one(
    database: Database, database_url: str
) -> None:
    got: list[RegisteredModel] = []
    with second(database_url) as other:
        thread = threading.Thread(target=lambda: got.append(register(other, SPEC)))
        with database.transaction() as connection:
            mine = registry.register(connection, SPEC, asked=False)
            thread.start()
            wait_for_lock(connection)
        thread.join(10)
    assert got == [mine]
    assert actives(database) == {SPEC.model_id: True}


def test_of_two_precisions_registered_at_once_one_is_active(
    database: Database, database_url: str
) -> None:
    refused: list[str] = []
    with second(database_url) as other:
        thread = threading.Thread(target=lambda: refused.append(refusal(other, HALF)))
        with database.transaction() as connection:
            registry.register(connection, SPEC, asked=False)
            thread.start()
            wait_for_lock(connection)
        thread.join(10)
    assert len(refused) == 1
    assert actives(database) == {SPEC.model_id: True}


def test_two_activations_at_once_leave_one_active(database: Database, database_url: str) -> None:
    register(database, SPEC)
    with database.transaction() as connection:
        half, changed = (registry.add(connection, spec) for spec in (HALF, CHANGED))
    before: list[RegisteredModel | None] = []

    def activate(database: Database) -> None:
        with database.transaction() as connection:
            before.append(registry.activate(connection, changed))

    with second(database_url) as other:
        thread = threading.Thread(target=activate, args=(other,))
        with database.transaction() as connection:
            registry.activate(connection, half)
            thread.start()
            wait_for_lock(connection)
        thread.join(10)
    assert [model and model.model_id for model in before] == [HALF.model_id]
    assert actives(database) == {
        SPEC.model_id: False,
        HALF.model_id: False,
        CHANGED.model_id: True,
    }


def test_registering_waits_for_no_reader_and_no_worker(
    database: Database, database_url: str
) -> None:
    working = register(database, SPEC)
    add_images(database, 2)
    with second(database_url) as other, other.transaction() as open_transaction:
        claim.seed_images(open_transaction, working.model_key)
        open_transaction.execute(text("SELECT count(*) FROM extractions"))
        with database.transaction() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '2s'"))
            registry.register(connection, replace(CHANGED, name="other"), asked=False)
            # Nor do those who come after wait for it, as they would behind a waiting lock.
            open_transaction.execute(text("SET LOCAL lock_timeout = '2s'"))
            open_transaction.execute(text("UPDATE extractions SET attempts = 1"))
    assert statuses(database, working.model_key) == {"pending": 2}


def wait_for_lock(connection: Connection) -> None:
    """Until another transaction waits for an advisory lock."""
    waiting = text("""
        SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
        WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted
    """)
    while connection.execute(waiting).first() is None:
        pass
