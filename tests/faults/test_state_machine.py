"""Any order of claims, heartbeats, expiries, commits, failures, merges and gc, against a model.

The model keeps in plain Python what the tables should hold; after every step both must agree.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, text

from tests.catalogue import add_images, make_model
from tests.shards import paths_in
from visual_search import claim, failures, record, upkeep
from visual_search.claim import DEATHS_TO_FAIL, Suspicion
from visual_search.compaction import table
from visual_search.database.connection import Database
from visual_search.database.schema import ShardState
from visual_search.errors import FailureReason, FencedError
from visual_search.images import (
    ClaimedImage,
    FailedImage,
    ImageId,
    LeaseToken,
    ModelKey,
    PostponedImage,
    RunId,
    ShardId,
    WrittenShard,
)
from visual_search.shard import prepare_output
from visual_search.storage import Folder

T = TypeVar("T")
IMAGES = 12
NO_LEASE = LeaseToken(uuid4())
MAX_ATTEMPTS = 3
SOON, LATER = 0.0, 3600.0


@dataclass
class Image:
    """What the model knows of one image."""

    status: str = "pending"
    lease: LeaseToken | None = None
    attempts: int = 0
    crashes: int = 0
    due: bool = True
    shard: ShardId | None = None


@dataclass
class Worker:
    """One lease as its worker sees it, who may be wrong."""

    token: LeaseToken
    run_id: RunId
    claimed: dict[ImageId, ClaimedImage] = field(default_factory=dict)
    shard_id: ShardId | None = None
    path: Path | None = None


@dataclass
class Merger:
    """A merge as its process sees it, which may be wrong."""

    shard_id: ShardId
    rows: dict[ShardId, list[ImageId]]
    path: Path


class Catalogue(RuleBasedStateMachine):
    """Rules are what workers, gc and users do; each is one step of the product."""

    database: Database
    model_key: ModelKey
    folder: Path

    workers = Bundle("workers")
    committers = Bundle("committers")
    mergers = Bundle("mergers")

    @initialize()
    def begin(self) -> None:
        with self.database.transaction() as connection:
            for table in ("leases", "shards"):
                connection.execute(text(f"DELETE FROM {table}"))
            connection.execute(
                text("""
                    UPDATE extractions SET status = 'pending', lease_token = NULL, attempts = 0,
                        crashes = 0, next_attempt_at = now() - interval '1 s', shard_id = NULL,
                        failure_reason = NULL, finished_at = NULL
                """)
            )
        for path in paths_in(self.folder):
            path.unlink()
        self.images = {ImageId(n): Image() for n in range(1, IMAGES + 1)}
        self.leases: dict[LeaseToken, bool] = {}
        self.shards: dict[ShardId, ShardState] = {}
        self.owners: dict[ShardId, LeaseToken] = {}
        self.files: dict[ShardId, Path] = {}
        self.merged_into: dict[ShardId, ShardId] = {}
        self.held: dict[ShardId, bool] = {}

    # What workers do.

    @rule(
        target=workers,
        rows=st.integers(1, 6),
        suspicion=st.sampled_from(list(Suspicion)),
    )
    def start(self, rows: int, suspicion: Suspicion) -> Worker:
        worker = Worker(LeaseToken(uuid4()), RunId(uuid4()))
        with self.database.transaction() as connection:
            claim.open_lease(
                connection,
                token=worker.token,
                model_key=self.model_key,
                run_id=worker.run_id,
                lease_s=600,
            )
            images = self._take(connection, worker, rows, suspicion)
        self.leases[worker.token] = True
        self._claimed(worker, images, rows, suspicion)
        return worker

    @rule(worker=workers, rows=st.integers(1, 6))
    def claim_more(self, worker: Worker, rows: int) -> None:
        def step(connection: Connection) -> list[ClaimedImage]:
            return self._take(connection, worker, rows, Suspicion.NONE)

        images = self._unless_fenced(worker, step)
        if images is not None:
            self._claimed(worker, images, rows, Suspicion.NONE)

    @rule(worker=workers)
    def heartbeat(self, worker: Worker) -> None:
        with self.database.transaction() as connection:
            alive = claim.renew_leases(
                connection, run_id=worker.run_id, tokens=[worker.token], lease_s=600
            )
            stranger = claim.renew_leases(
                connection, run_id=RunId(uuid4()), tokens=[worker.token], lease_s=600
            )
        assert alive == ({worker.token} & self.leases.keys())
        assert not stranger
        if alive:
            self.leases[worker.token] = True

    @rule(worker=workers, reason=st.sampled_from([FailureReason.GONE, FailureReason.TIMEOUT]),
          delay_s=st.sampled_from([SOON, LATER]), data=st.data())  # fmt: skip
    def fail(
        self, worker: Worker, reason: FailureReason, delay_s: float, data: st.DataObject
    ) -> None:
        image = self._one_of(worker, data)
        if image is None:
            return
        failure = FailedImage(image=image, reason=reason, detail="", retry_after_s=delay_s)

        def step(connection: Connection) -> int:
            claim.lock_lease(connection, worker.token)
            return record.record_failures(
                connection,
                token=worker.token,
                model_key=self.model_key,
                failures=[failure],
                max_attempts=MAX_ATTEMPTS,
                backoff_s=0,
            )

        final = self._unless_fenced(worker, step)
        if final is None:
            return
        known = self.images[image.image_id]
        known.attempts += 1
        over = not reason.retryable or known.attempts >= MAX_ATTEMPTS
        assert final == int(over)
        known.status, known.lease = "failed" if over else "pending", None
        known.due = delay_s == SOON

    @rule(worker=workers, data=st.data())
    def postpone(self, worker: Worker, data: st.DataObject) -> None:
        image = self._one_of(worker, data)
        if image is None:
            return

        def step(connection: Connection) -> bool:
            claim.lock_lease(connection, worker.token)
            record.postpone_images(
                connection,
                token=worker.token,
                model_key=self.model_key,
                postponed=[PostponedImage(image=image, wait_s=LATER)],
            )
            return True

        if self._unless_fenced(worker, step):
            known = self.images[image.image_id]
            known.status, known.lease, known.due = "pending", None, False

    @rule(target=committers, worker=consumes(workers), finished=st.booleans())
    def write(self, worker: Worker, finished: bool) -> Worker:
        """Begin a shard; its file may be there already or be written still."""
        worker.shard_id = ShardId(uuid4())
        name = f"{worker.shard_id}.parquet"
        folder = self.folder / "model_id=tiny" / "date=2026-01-01"
        worker.path = folder / (name if finished else f".{name}.partial")
        with self.database.transaction() as connection:
            record.begin_shard(
                connection,
                shard_id=worker.shard_id,
                model_key=self.model_key,
                uri=(folder / name).as_uri(),
                run_id=worker.run_id,
            )
        worker.path.touch()
        self.shards[worker.shard_id] = ShardState.WRITING
        self.owners[worker.shard_id] = worker.token
        self.files[worker.shard_id] = worker.path
        return worker

    @rule(worker=committers, times=st.integers(1, 2))
    def commit(self, worker: Worker, times: int) -> None:
        """Once, or twice as after a lost reply."""
        assert worker.shard_id is not None
        state = self.shards[worker.shard_id]
        fenced = state is not ShardState.COMMITTED and (
            state is not ShardState.WRITING or worker.token not in self.leases
        )
        for _ in range(times if worker.claimed else 0):
            try:
                with self.database.transaction() as connection:
                    self._commit(connection, worker)
            except FencedError:
                assert fenced
            else:
                assert not fenced
        if fenced or state is ShardState.COMMITTED or not worker.claimed:
            return
        self.shards[worker.shard_id] = ShardState.COMMITTED
        for image_id in worker.claimed:
            image = self.images[image_id]
            image.status, image.lease, image.shard = "done", None, worker.shard_id
        self._lease_ends(worker.token)

    @rule(worker=workers | committers)
    def release(self, worker: Worker) -> None:
        """Drained: what is claimed is given back."""
        held = [image for image in self.images.values() if image.lease == worker.token]
        with self.database.transaction() as connection:
            assert claim.close_lease(connection, worker.token) == len(held)
        self._lease_ends(worker.token)
        worker.claimed.clear()

    # What merges of shards do.

    @rule(target=mergers, data=st.data())
    def begin_merge(self, data: st.DataObject) -> Any:
        committed = [s for s, state in self.shards.items() if state is ShardState.COMMITTED]
        if len(committed) < 2:
            return multiple()
        sources = data.draw(
            st.lists(st.sampled_from(committed), min_size=2, max_size=3, unique=True)
        )
        shard_id = ShardId(uuid4())
        path = self.folder / "model_id=tiny" / "date=2026-01-01" / f"{shard_id}.parquet"
        taken = [s for s in sources if self._is_held(self.merged_into.get(s))]
        try:
            with self.database.transaction() as connection:
                table.begin_merge(
                    connection,
                    shard_id=shard_id,
                    model_key=self.model_key,
                    uri=path.as_uri(),
                    run_id=RunId(uuid4()),
                    sources=sources,
                    hold_s=600,
                )
        except FencedError:
            assert taken
            return multiple()
        assert not taken
        path.touch()
        self.shards[shard_id], self.held[shard_id] = ShardState.WRITING, True
        self.files[shard_id] = path
        self.merged_into |= dict.fromkeys(sources, shard_id)
        rows = {s: [n for n, image in self.images.items() if image.shard == s] for s in sources}
        return Merger(shard_id, rows, path)

    @rule(merger=mergers, times=st.integers(1, 2))
    def commit_merge(self, merger: Merger, times: int) -> None:
        """Once, or twice as after a lost reply."""
        shard_id, state = merger.shard_id, self.shards[merger.shard_id]
        fenced = state is not ShardState.COMMITTED and (
            state is not ShardState.WRITING
            or any(
                self.shards[source] is not ShardState.COMMITTED
                or self.merged_into[source] != shard_id
                for source in merger.rows
            )
        )
        for _ in range(times):
            try:
                with self.database.transaction() as connection:
                    self._commit_merge(connection, merger)
            except FencedError:
                assert fenced
            else:
                assert not fenced
        if fenced or state is not ShardState.WRITING:
            return
        self.shards[shard_id] = ShardState.COMMITTED
        for source, images in merger.rows.items():
            self.shards[source] = ShardState.SUPERSEDED
            for image_id in images:
                self.images[image_id].shard = shard_id

    @rule(merger=mergers)
    def merge_sleeps_too_long(self, merger: Merger) -> None:
        with self.database.transaction() as connection:
            table.hold_shard(connection, merger.shard_id, hold_s=0)
        self.held[merger.shard_id] = False

    # What happens to them, and what others do.

    @rule(worker=workers | committers)
    def sleep_too_long(self, worker: Worker) -> None:
        with self.database.transaction() as connection:
            connection.execute(
                text("""
                    UPDATE leases SET expires_at = clock_timestamp() - interval '1 s'
                    WHERE lease_token = :token
                """),
                {"token": worker.token},
            )
        if worker.token in self.leases:
            self.leases[worker.token] = False

    @rule()
    def rescue(self) -> None:
        with self.database.transaction() as connection:
            rescued = claim.rescue_images(connection, self.model_key)
        dead = {token for token, alive in self.leases.items() if not alive}
        taken = [image for image in self.images.values() if image.lease in dead]
        assert rescued == len(taken)
        for image in taken:
            image.crashes += 1
            image.status = "failed" if image.crashes >= DEATHS_TO_FAIL else "pending"
            image.lease, image.due = None, True
        for token in dead:
            del self.leases[token]

    @rule()
    def collect_garbage(self) -> None:
        deleted = {
            Path(found.path)
            for found in upkeep.collect_garbage(
                self.database,
                Folder(self.folder),
                grace_s=-1,
                superseded_grace_s=0,
                delete=True,
            )
        }
        expected = set()
        for shard_id, path in list(self.files.items()):
            state = self.shards[shard_id]
            alive = self._is_held(shard_id) or self.leases.get(
                self.owners.get(shard_id, NO_LEASE), False
            )
            if state is ShardState.COMMITTED or (state is ShardState.WRITING and alive):
                continue
            if state is ShardState.WRITING:
                self.shards[shard_id] = ShardState.ABANDONED
            expected.add(path)
            del self.files[shard_id]
        assert deleted == expected

    @rule(data=st.data())
    def repair(self, data: st.DataObject) -> None:
        """Somebody found a committed shard damaged."""
        committed = [s for s, state in self.shards.items() if state is ShardState.COMMITTED]
        if not committed:
            return
        shard_id = data.draw(st.sampled_from(committed))
        inside = [image for image in self.images.values() if image.shard == shard_id]
        with self.database.transaction() as connection:
            assert record.discard_shard(connection, shard_id) == len(inside)
        self.shards[shard_id] = ShardState.DISCARDED
        for image in inside:
            image.status, image.shard, image.due = "pending", None, True

    @rule()
    def retry_failed(self) -> None:
        with self.database.transaction() as connection:
            failures.retry_failed(connection, model_key=self.model_key)
        for image in self.images.values():
            if image.status == "failed" or (image.status == "pending" and not image.due):
                image.status, image.attempts, image.crashes, image.due = "pending", 0, 0, True

    # What must hold after every step.

    @invariant()
    def the_tables_hold_what_the_model_says(self) -> None:
        with self.database.transaction() as connection:
            rows = connection.execute(
                text("""
                    SELECT image_id, status, lease_token, attempts, crashes, shard_id,
                           next_attempt_at <= clock_timestamp() AS due
                    FROM extractions
                """)
            ).all()
            shards = connection.execute(
                text("SELECT shard_id, state, coalesce(rows, 0) AS rows FROM shards")
            ).all()
            leases = connection.execute(
                text("SELECT lease_token, expires_at > clock_timestamp() AS alive FROM leases")
            ).all()
        found = {
            row.image_id: Image(
                row.status, row.lease_token, row.attempts, row.crashes, row.due, row.shard_id
            )
            for row in rows
        }
        for image_id, image in self.images.items():
            if image.status in ("done", "failed", "claimed"):
                found[image_id].due = image.due  # says nothing then
        assert found == self.images
        assert {row.lease_token: row.alive for row in leases} == self.leases
        assert {row.shard_id: ShardState(row.state) for row in shards} == self.shards
        done = sum(row.rows for row in shards if row.state == "committed")
        assert done == sum(image.status == "done" for image in self.images.values())

    @invariant()
    def what_is_claimed_has_a_lease_and_what_is_listed_a_file(self) -> None:
        assert {image.lease for image in self.images.values()} <= self.leases.keys() | {None}
        for shard_id, state in self.shards.items():
            if state is ShardState.COMMITTED:
                assert self.files[shard_id].exists()

    def _take(
        self, connection: Connection, worker: Worker, rows: int, suspicion: Suspicion
    ) -> list[ClaimedImage]:
        return claim.claim_images(
            connection,
            token=worker.token,
            model_key=self.model_key,
            rows=rows,
            suspicion=suspicion,
        )

    def _claimed(
        self, worker: Worker, images: list[ClaimedImage], rows: int, suspicion: Suspicion
    ) -> None:
        least, most, largest = suspicion.value
        free = {
            image_id
            for image_id, image in self.images.items()
            if image.status == "pending" and image.due and least <= image.crashes <= most
        }
        assert {image.image_id for image in images} <= free
        assert len(images) == min(rows, largest, len(free))
        for image in images:
            known = self.images[image.image_id]
            assert (image.attempts, image.crashes) == (known.attempts, known.crashes)
            known.status, known.lease = "claimed", worker.token
            worker.claimed[image.image_id] = image

    def _commit(self, connection: Connection, worker: Worker) -> None:
        """As the recorder does."""
        assert worker.shard_id is not None
        state = record.shard_state(connection, worker.shard_id)
        if state is ShardState.COMMITTED:
            return
        if state is not ShardState.WRITING:
            raise FencedError("given up")
        claim.lock_lease(connection, worker.token)
        record.commit_shard(
            connection,
            token=worker.token,
            model_key=self.model_key,
            shard=WrittenShard(
                shard_id=worker.shard_id,
                uri="file:///x",
                rows=len(worker.claimed),
                bytes=1,
                sha256="00",
            ),
            rows=[
                record.RecordedRow(image_id=image_id, row_in_shard=n, content_sha256=bytes(32))
                for n, image_id in enumerate(worker.claimed)
            ],
        )
        claim.close_lease(connection, worker.token)

    def _is_held(self, shard_id: ShardId | None) -> bool:
        """Whether a merge that lives writes this shard."""
        return (
            shard_id is not None
            and self.shards[shard_id] is ShardState.WRITING
            and self.held.get(shard_id, False)
        )

    def _commit_merge(self, connection: Connection, merger: Merger) -> None:
        images = [image_id for inside in merger.rows.values() for image_id in inside]
        positions = {image_id: n for n, image_id in enumerate(images)}
        table.commit_merge(
            connection,
            model_key=self.model_key,
            shard=WrittenShard(
                shard_id=merger.shard_id, uri="file:///x", rows=len(images), bytes=1, sha256="00"
            ),
            moved={
                source: table.MovedRows(
                    image_ids=inside, positions=[positions[image_id] for image_id in inside]
                )
                for source, inside in merger.rows.items()
            },
        )

    def _unless_fenced(self, worker: Worker, step: Callable[[Connection], T]) -> T | None:
        try:
            with self.database.transaction() as connection:
                result = step(connection)
        except FencedError:
            assert worker.token not in self.leases
            worker.claimed.clear()
            return None
        assert worker.token in self.leases
        return result

    def _one_of(self, worker: Worker, data: st.DataObject) -> ClaimedImage | None:
        if not worker.claimed:
            return None
        image_id = data.draw(st.sampled_from(sorted(worker.claimed)))
        return worker.claimed.pop(image_id)

    def _lease_ends(self, token: LeaseToken) -> None:
        for image in self.images.values():
            if image.lease == token:
                image.status, image.lease = "pending", None
        self.leases.pop(token, None)


@pytest.mark.parametrize(
    ("runs", "steps"), [(20, 30), pytest.param(1_000, 50, marks=pytest.mark.long)]
)
def test_the_tables_agree_with_the_model_after_any_steps(
    database: Database, tmp_path: Path, runs: int, steps: int
) -> None:
    model_key = make_model(database)
    add_images(database, IMAGES)
    with database.transaction() as connection:
        claim.seed_images(connection, model_key)
        # What is lost in a crash of the server is not this test's question.
        connection.execute(
            text("""
                DO $$ BEGIN
                    EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off',
                                   current_database());
                END $$
            """)
        )
    database.close()
    prepare_output(Folder(tmp_path), database.run(record.catalogue_id))
    (tmp_path / "model_id=tiny" / "date=2026-01-01").mkdir(parents=True)
    machine = type(
        "Machine",
        (Catalogue,),
        {"database": database, "model_key": model_key, "folder": tmp_path},
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
