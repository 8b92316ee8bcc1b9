"""A run whose decoders are killed and stopped from outside: each blow costs one image at most."""

import asyncio
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.catalogue import add_urls
from tests.end_to_end.workplace import Workplace, jpeg
from tests.server import ImageServer
from tests.unit.test_decoder_process import needs_proc
from visual_search import failures
from visual_search.database.connection import Database
from visual_search.errors import ExitCode
from visual_search.models import registry
from visual_search.settings import DecodeSettings

# After each so many images there is a blow, and nothing is served until it has fallen.
IMAGES_PER_BLOW = 4
PATIENCE_S = 60
CHILD = "visual_search.decode.child"


class Assailant(threading.Thread):
    """Kills this process's decoders, and stops every fifth instead, one blow after the other.

    A child that is starting is left alone: it has a minute for that, and three attempts.

    Attributes:
        fallen: Blows so far, by signal.
    """

    def __init__(self, blows: int) -> None:
        super().__init__(name="assailant", daemon=True)
        self.fallen: Counter[signal.Signals] = Counter()
        self._blows = blows
        self._rng = random.Random(blows)
        self._up: set[int] = set()
        self._allowed = threading.Semaphore(0)
        self._news = threading.Condition()

    def allow(self) -> None:
        """One more blow, at some moment from now on."""
        self._allowed.release()

    def await_blows(self, number: int) -> None:
        """Return once so many have fallen."""
        with self._news:
            assert self._news.wait_for(lambda: self.fallen.total() >= number, PATIENCE_S)

    def run(self) -> None:
        for number in range(self._blows):
            self._allowed.acquire()
            kind = signal.SIGSTOP if number % 5 == 3 else signal.SIGKILL
            self._strike(kind)
            with self._news:
                self.fallen[kind] += 1
                self._news.notify_all()

    def _strike(self, kind: signal.Signals) -> None:
        """Send it to a decoder that is up; rather to one that is at work."""
        while True:
            states = {pid: state(pid) for pid in children()}
            # Asleep, its complaints turned to nowhere: it waits for images, and is up from now on.
            self._up |= {pid for pid, s in states.items() if s == "S" and is_quiet(pid)}
            ready = [pid for pid, s in states.items() if pid in self._up and s in ("R", "S")]
            busy = [pid for pid in ready if states[pid] == "R"]
            if ready:
                with suppress(ProcessLookupError):  # it was replaced meanwhile
                    os.kill(self._rng.choice(busy or ready), kind)
                    return
            time.sleep(0.005)


def children() -> list[int]:
    """This process's decoders."""
    tasks = Path("/proc/self/task").glob("*/children")
    pids = [pid for task in tasks for pid in read(task).split()]
    return [int(pid) for pid in pids if CHILD in read(Path(f"/proc/{pid}/cmdline"))]


def is_quiet(pid: int) -> bool:
    """Whether what it writes to stderr goes nowhere, which is the last thing that it sets up."""
    try:
        return Path(f"/proc/{pid}/fd/2").readlink() == Path(os.devnull)
    except OSError:
        return False


def state(pid: int) -> str:
    return read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].strip()[:1]


def read(file: Path) -> str:
    """What is in it; nothing if it went with its process."""
    try:
        return file.read_text()
    except OSError:
        return ""


@pytest.fixture
def place(
    tmp_path: Path, database: Database, database_url: str, image_server: ImageServer
) -> Workplace:
    return Workplace(tmp_path, database, database_url, image_server)


@needs_proc
@pytest.mark.parametrize("blows", [5, pytest.param(100, marks=pytest.mark.long)])
def test_a_killed_or_hung_decoder_costs_one_image_and_loses_none(
    place: Workplace, blows: int
) -> None:
    assailant = Assailant(blows)
    images = IMAGES_PER_BLOW * blows
    served = 0

    async def answer(request: web.BaseRequest) -> web.Response:
        nonlocal served
        served += 1
        turn = served
        if turn % IMAGES_PER_BLOW == 0:
            assailant.allow()
        await asyncio.to_thread(assailant.await_blows, min(blows, turn // IMAGES_PER_BLOW))
        return web.Response(body=jpeg(int(request.path[1:-4])), content_type="image/jpeg")

    for number in range(images):
        place.server.route(f"/{number}.jpg", answer)
    add_urls(place.database, [place.server.url(f"/{number}.jpg") for number in range(images)])
    assailant.start()
    flags: dict[str, Any] = {
        "decode": {"workers": 2, "timeout_s": 1},
        "download": {"deadline_s": PATIENCE_S, "concurrency": 8},
    }
    (result,) = place.extract(**flags)
    assailant.join(PATIENCE_S)

    assert assailant.fallen.total() == blows
    assert result.exit_code is ExitCode.OK, result
    status = place.status()
    assert status.done + status.failed == images
    assert set(status.failed_by_reason) <= {"kills_decoder", "decode_timeout"}
    assert status.failed_by_reason.get("kills_decoder", 0) <= assailant.fallen[signal.SIGKILL]
    # Those that fell on a decoder between two images may cost nothing.
    assert status.failed_by_reason.get("decode_timeout", 0) <= assailant.fallen[signal.SIGSTOP]
    assert status.failed >= blows // 10 - 1

    # Without blows, all that they cost is had; nothing else was touched.
    before = place.rows("SELECT image_id, shard_id FROM extractions WHERE status = 'done'")
    with place.database.transaction() as connection:
        (model,) = registry.registered(connection)
        assert failures.retry_failed(connection, model_key=model.model_key) == status.failed
    (result,) = place.extract(**flags)
    assert (place.status().done, place.status().failed) == (images, 0)
    after = place.rows("SELECT image_id, shard_id FROM extractions WHERE status = 'done'")
    assert set(before) <= set(after)


def test_a_decoder_has_ten_seconds_at_most_unless_a_setting_says_otherwise() -> None:
    assert DecodeSettings().timeout_s <= 10
