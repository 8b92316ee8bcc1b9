"""What a run says to the database, without what it does in between."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, create_engine, text

from visual_search import claim, record
from visual_search.claim import Place, Suspicion
from visual_search.database.connection import Database
from visual_search.images import ClaimedImage, LeaseToken, ModelKey, RunId, ShardId, WrittenShard

T = TypeVar("T")
_LEASE_S: Final = 600


@dataclass(kw_only=True, slots=True)
class Worker:
    """Claims and records as `pipeline` does; each step gives its seconds, commit included."""

    database: Database
    model_key: ModelKey
    run_id: RunId = field(default_factory=lambda: RunId(uuid4()))
    place: Place = field(default_factory=Place)
    token: LeaseToken | None = None
    images: list[ClaimedImage] = field(default_factory=list)
    settled: list[ClaimedImage] = field(default_factory=list)
    shards: list[ShardId] = field(default_factory=list)

    def claim(self, rows: int) -> float:
        """Claim for the open shard, or for a new one."""
        token = self.token or LeaseToken(uuid4())

        def step(connection: Connection) -> list[ClaimedImage]:
            claim.rescue_images(connection, self.model_key, lease_s=_LEASE_S, own_run=self.run_id)
            if self.token is None:
                claim.open_lease(
                    connection,
                    token=token,
                    model_key=self.model_key,
                    run_id=self.run_id,
                    lease_s=_LEASE_S,
                )
            images = claim.claim_images(
                connection,
                token=token,
                model_key=self.model_key,
                rows=rows,
                suspicion=Suspicion.NONE,
                place=self.place,
            )
            return claim.release_paused(connection, token=token, images=images)

        begun = time.monotonic()
        images = self.database.run(step)
        took = time.monotonic() - begun
        if len(images) != rows:
            raise SystemExit(f"{len(images)} images claimed, not {rows}")
        self.token = token
        self.images += images
        return took

    def record(self) -> float:
        """Record all that is claimed, as one shard without a file."""
        token, shard_id = self.token, ShardId(uuid4())
        assert token is not None
        shard = WrittenShard(
            shard_id=shard_id, uri=f"file:///{shard_id}", rows=len(self.images), bytes=1, sha256="0"
        )
        rows = [
            record.RecordedRow(
                image_id=image.image_id, row_in_shard=position, content_sha256=os.urandom(32)
            )
            for position, image in enumerate(self.images)
        ]
        self.database.run(
            lambda connection: record.begin_shard(
                connection,
                shard_id=shard_id,
                model_key=self.model_key,
                uri=shard.uri,
                run_id=self.run_id,
            )
        )

        def step(connection: Connection) -> None:
            record.shard_state(connection, shard_id)
            claim.lock_lease(connection, token)
            record.commit_shard(
                connection, token=token, model_key=self.model_key, shard=shard, rows=rows
            )
            claim.close_lease(connection, token)

        begun = time.monotonic()
        self.database.run(step)
        took = time.monotonic() - begun
        self.settled += self.images
        self.shards.append(shard_id)
        self.token, self.images = None, []
        return took

    def undo(self) -> None:
        """Make everything pending again, at its old place in the queue."""
        with self.database.transaction() as connection:
            connection.execute(
                text("""
                    UPDATE extractions SET
                        status = 'pending', lease_token = NULL, shard_id = NULL,
                        row_in_shard = NULL, content_sha256 = NULL, finished_at = NULL
                    WHERE model_key = :model_key AND image_id = ANY(CAST(:images AS bigint[]));
                    DELETE FROM shards WHERE shard_id = ANY(CAST(:shards AS uuid[]));
                    DELETE FROM leases WHERE run_id = :run_id
                """),
                {
                    "model_key": self.model_key,
                    "images": [image.image_id for image in self.settled + self.images],
                    "shards": [str(shard) for shard in self.shards],
                    "run_id": self.run_id,
                },
            )
        self.place, self.token = Place(), None
        self.images, self.settled, self.shards = [], [], []


@contextmanager
def old_snapshot(url: str) -> Iterator[None]:
    """A reader that keeps the database from forgetting anything."""
    engine = create_engine(url, isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        connection.execute(text("SELECT count(*) FROM vsearch.leases"))
        yield
    engine.dispose()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of some work: pages looked at, processor time of this thread and of the whole server."""

    buffers: int
    client_s: float
    server_s: float


def cost(database: Database, work: Callable[[], object]) -> Cost:
    """What `work` costs, if nobody else works with the server."""
    before, server, client = _buffers(database), _server_s(database), time.thread_time()
    work()
    client = time.thread_time() - client
    return Cost(
        buffers=_buffers(database) - before,
        client_s=client,
        server_s=_server_s(database) - server,
    )


def _buffers(database: Database) -> int:
    """Pages that this database's connection, one at a time, has read or found in memory."""
    with database.transaction() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with database.transaction() as connection:
        pages: int = connection.execute(
            text("""
                SELECT CAST(sum(reads + hits) AS bigint)
                FROM pg_stat_get_backend_io(pg_backend_pid()) WHERE object = 'relation'
            """)
        ).scalar_one()
    return pages


def _server_s(database: Database) -> float:
    """Processor seconds of all the server's processes so far, those that ended included."""
    with database.transaction() as connection:
        backend: int = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    server = _stat(backend)[1]
    ticks = sum(_stat(server)[11:15])
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = _stat(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat[1] == server:
            ticks += stat[11] + stat[12]
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[int]:
    """`/proc/PID/stat` from the state on: [1] parent, [11:15] times of it and of ended children."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, *(int(word) for word in words[1:])]
