"""Where a worker is hurt, and how. Imported by the nursery's children; the product knows nothing.

`arm` replaces one function, so that the fault strikes exactly there:

    P1   after the claim's commit          P7   after fsync, before the rename
    P2   in mid-download                   P8   after the rename, before the commit
    P3   after decode                      P9   COMMIT sent, reply lost: `proxy.py`
    P4   after embed                       P10  after the commit
    P5   in mid-file                       P11  inside a heartbeat's transaction
    P6   after the footer, before fsync    P12  during the drain
                                           P13  inside gc: abandoned, not yet deleted

    G1   gc has listed the files           G2   gc has found a writer dead, in its transaction
    G3   as P13

    C1   a merge has taken its shards      C4   in the commit's transaction, all but committed
    C2   in mid-file                       C5   after the commit
    C3   before the commit                 P6, P7  as above
"""

import datetime as dt
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import psycopg2

from visual_search import claim, compaction, record, upkeep
from visual_search.compaction import merge, table
from visual_search.database import connection
from visual_search.decode import DecoderProcess
from visual_search.download import Downloader
from visual_search.embed import Embedder
from visual_search.pipeline import embedding
from visual_search.pipeline.claiming import Claimer
from visual_search.pipeline.feeder import Feeder
from visual_search.pipeline.recorder import Recorder
from visual_search.shard import ShardWriter, writer

FUNCTION = "tests.faults.points:arm"


class Kind(StrEnum):
    """What happens to the worker at the point."""

    KILLED = "killed"
    EIO = "eio"
    CUT_OFF = "cut-off"
    FROZEN = "frozen"


def arm(*, point: str, kind: str, nth: int, note: str) -> None:
    """Let the fault strike when the point is reached for the `nth` time.

    Args:
        point: As above.
        kind: Of `Kind`.
        nth: From 1.
        note: A file that exists once the fault has struck.
    """
    fault = _Fault(Kind(kind), nth, Path(note))
    # So that even a small shard has several row groups.
    writer._ROW_GROUP_ROWS = 5  # type: ignore[misc]
    match point:
        case "P1":
            _before(Claimer, "_count", fault.strike)
        case "P2":
            _before(Downloader, "_read", fault.strike)
        case "P3":
            _after(DecoderProcess, "decode", fault.strike)
        case "P4":
            _after(Embedder, "embed", fault.strike)
        case "P5":
            _after(ShardWriter, "_flush", fault.strike)
        case "P6":
            _before(os, "fsync", fault.strike, when=_is_partial_file)
        case "P7":
            _before(Path, "replace", fault.strike, when=_is_partial)
        case "P8":
            _before(Recorder, "_commit", fault.strike)
        case "P10":
            _before(Recorder, "_forget", fault.strike)
        case "P11":
            _after(claim, "renew_leases", fault.strike, when=bool)
        case "P12":
            _after(Recorder, "_take", _signal_after(8))
            _after(Feeder, "_drain", fault.strike)
        case "G1":
            _after(upkeep, "list_files", fault.strike)
        case "G2":
            _before(record, "abandon_shard", fault.strike)
        case "C1":
            _before(merge, "_held", fault.strike)
        case "C2":
            _before(ShardWriter, "append", fault.strike)
        case "C3":
            _before(table, "commit_merge", fault.strike)
        case "C4":
            _after(table, "commit_merge", fault.strike)
        case "C5":
            _after(compaction, "merge_group", fault.strike)
        case "P13" | "G3":
            _before(Path, "unlink", fault.strike, when=_is_partial_or_shard)
        case _:
            raise ValueError(point)


def set_idle_limit(*, seconds: int) -> None:
    """Let the server end a transaction sooner that its client leaves idle."""
    connection._MAX_IDLE_S = seconds  # type: ignore[misc]


def terminate_backends(url: str) -> int:
    """Cut every connection of the product to this database; says how many there were."""
    ours = psycopg2.connect(url.replace("+psycopg2", ""), application_name="fault")
    try:
        with ours, ours.cursor() as cursor:
            cursor.execute(
                """
                SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE application_name = 'vsearch' AND datname = current_database()
                """
            )
            row = cursor.fetchone()
    finally:
        ours.close()
    assert row is not None
    return int(row[0])


class _Fault:
    def __init__(self, kind: Kind, nth: int, note: Path) -> None:
        self._kind = kind
        self._left = nth
        self._note = note
        self._lock = threading.Lock()

    def strike(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return
        self._note.touch()
        match self._kind:
            case Kind.KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            case Kind.FROZEN:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Kind.CUT_OFF:
                terminate_backends(os.environ["VSEARCH_DATABASE_URL"])
            case Kind.EIO:
                raise OSError(errno.EIO, os.strerror(errno.EIO))


def _always(*_arguments: Any) -> bool:
    return True


def _before(
    owner: Any, name: str, strike: Callable[[], None], when: Callable[..., bool] = _always
) -> None:
    original = getattr(owner, name)

    def replaced(*arguments: Any, **named: Any) -> Any:
        if when(*arguments):
            strike()
        return original(*arguments, **named)

    setattr(owner, name, replaced)


def _after(
    owner: Any, name: str, strike: Callable[[], None], when: Callable[[Any], bool] = _always
) -> None:
    original = getattr(owner, name)

    def replaced(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if when(result):
            strike()
        return result

    setattr(owner, name, replaced)


def _signal_after(count: int) -> Callable[[], None]:
    left = [count]

    def signal_once() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    return signal_once


def _is_partial_file(descriptor: int) -> bool:
    return _is_partial(Path(f"/proc/self/fd/{descriptor}").resolve())


def _is_partial(path: Path, *_: Any) -> bool:
    return path.name.endswith(".parquet.partial")


def _is_partial_or_shard(path: Path, *_: Any) -> bool:
    return ".parquet" in path.name


def count_embeddings(*, counter: str) -> None:
    """Let the file `counter` grow by a byte for each image that is embedded."""
    file = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    original = Embedder.embed

    def counted(self: Embedder, batch: Any) -> Any:
        os.write(file, bytes(len(batch)))
        return original(self, batch)

    Embedder.embed = counted  # type: ignore[method-assign]


def lose_heartbeats() -> None:
    """Let no lease be renewed; its worker does not notice."""

    def renewed(_connection: Any, *, tokens: Any, **_: Any) -> set[Any]:
        return set(tokens)

    claim.renew_leases = renewed  # type: ignore[assignment]


def set_clock(*, ahead_s: float) -> None:
    """Let this process's wall clock go wrong; how fast time passes stays as it is."""
    right_time = time.time

    class Wrong(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return dt.datetime.now(tz) + dt.timedelta(seconds=ahead_s)

    time.time = lambda: right_time() + ahead_s
    for module in list(sys.modules.values()):
        if module.__name__.startswith("visual_search") and hasattr(module, "datetime"):
            module.datetime = Wrong  # type: ignore[attr-defined]


def hasten() -> None:
    """Let the last batch wait less for pictures that do not come."""
    embedding._BATCH_WAIT_S = 0.05  # type: ignore[misc]


def add_path(*, folder: str) -> None:
    """Let this process, and the decoders it starts, import from `folder`."""
    sys.path.insert(0, folder)


def die_of(*, marker: str) -> None:
    """Let the worker be killed when it gets to decode a body that begins so."""
    original = DecoderProcess.decode

    def deadly(self: DecoderProcess, body: bytes, *arguments: Any, **named: Any) -> Any:
        if body.startswith(marker.encode()):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, body, *arguments, **named)

    DecoderProcess.decode = deadly  # type: ignore[method-assign]
