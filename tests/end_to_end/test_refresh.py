"""Refreshes: each vector's picture is asked for once; only what has changed is embedded again."""

import asyncio
import hashlib
import json
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
from aiohttp import web

from tests.catalogue import add_urls
from tests.end_to_end.test_export import export_to
from tests.end_to_end.workplace import TINY, Workplace, jpeg
from tests.shards import vectors_of
from visual_search import pipeline
from visual_search.cli.extract import _checks, _document
from visual_search.errors import ExitCode, SettingsError
from visual_search.export.parts import read_part
from visual_search.failures import list_failures
from visual_search.pipeline import ModelResult
from visual_search.pipeline.checks import Checks
from visual_search.pipeline.signals import StopSignals
from visual_search.storage import Folder

OLD = "Thu, 29 Feb 2024 12:30:01 GMT"
SHARDS: dict[str, Any] = {"shard_rows": 10}


class Shelf:
    """Pictures of a shop, on a server that answers conditional requests as it should.

    Attributes:
        answers: How many requests were answered with which status.
        meets: May answer a request in the shelf's stead.
        arrived: Requests so far.
        let_through: Until it is set they wait.
        delay_s: Before each answer.
    """

    def __init__(self, place: Workplace, *, etags: bool = True, dates: bool = False) -> None:
        self.place = place
        self.answers: Counter[int] = Counter()
        self.meets: Callable[[int], web.Response | None] = lambda _number: None
        self.arrived = 0
        self.let_through = threading.Event()
        self.let_through.set()
        self.delay_s = 0.0
        self._etags = etags
        self._dates = dates
        self._bodies: dict[int, bytes] = {}

    def stock(self, count: int, *, start: int = 0) -> None:
        """Put pictures on the shelf and into the catalogue."""
        numbers = range(start, start + count)
        for number in numbers:
            self.put(number, jpeg(number))
        add_urls(self.place.database, [self.place.server.url(f"/{n}.jpg") for n in numbers])

    def put(self, number: int, body: bytes) -> None:
        """Put another picture in the place of one."""
        self._bodies[number] = body

        async def answer(request: web.BaseRequest) -> web.Response:
            self.arrived += 1
            await asyncio.sleep(self.delay_s)
            await asyncio.to_thread(self.let_through.wait)
            reply = self.meets(number) or self._answer(request, self._bodies[number])
            self.answers[reply.status] += 1
            return reply

        self.place.server.route(f"/{number}.jpg", answer)

    def wait_for(self, requests: int) -> None:
        deadline = time.monotonic() + 60
        while self.arrived < requests:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _answer(self, request: web.BaseRequest, body: bytes) -> web.Response:
        headers = {}
        known = False
        if self._etags:
            etag = headers["ETag"] = f'"{hashlib.md5(body).hexdigest()}"'
            known = request.headers.get("If-None-Match") == etag
        if self._dates:
            headers["Last-Modified"] = OLD
            known = known or request.headers.get("If-Modified-Since") == OLD
        return web.Response(status=304 if known else 200, body=body, headers=headers)


@pytest.fixture
def shelf(place: Workplace) -> Shelf:
    return Shelf(place)


def check(place: Workplace, *names: str, **flags: Any) -> list[ModelResult]:
    checks = Checks(older_than_s=flags.pop("older_than_s", None))
    limit = flags.pop("limit", None)
    return pipeline.extract(
        place.database,
        place.settings(**flags),
        names or ("tiny",),
        stop=StopSignals(),
        limit=limit,
        checks=checks,
    )


def counts(result: ModelResult) -> tuple[int, int, int]:
    """Changed, unchanged, not checked."""
    assert result.exit_code is ExitCode.OK, result
    assert result.checked
    return result.figures.done, result.figures.unchanged, result.figures.failed


def vectors(place: Workplace, name: str = "tiny") -> dict[int, list[float]]:
    """Those that count, by image; a vector is found where the history says it is."""
    found = {}
    rows = place.rows(
        """
        SELECT s.uri, e.image_id, e.row_in_shard
        FROM extractions e JOIN shards s USING (shard_id) JOIN models m ON m.model_key = e.model_key
        WHERE e.status = 'done' AND s.state = 'committed' AND m.name = :name
        """,
        name=name,
    )
    for uri, image_id, row in rows:
        ids, vectors = vectors_of(uri)
        assert ids[row] == image_id
        found[image_id] = vectors[row].tolist()
    return found


def fresh_vectors(place: Workplace) -> dict[int, list[float]]:
    """As a catalogue has them that is made now."""
    place.models["later"] = TINY | {"revision": "2"}
    (result,) = place.extract("later")
    assert result.figures.failed == 0
    return vectors(place, "later")


def assert_exact(place: Workplace, images: int, name: str = "tiny") -> None:
    """The history, the shards and the status agree; nobody holds anything."""
    status = place.status(name)
    assert (status.total, status.done, status.pending, status.claimed) == (images, images, 0, 0)
    assert place.rows("SELECT count(*) FROM leases") == [(0,)]
    assert place.rows("SELECT count(*) FROM extractions WHERE lease_token IS NOT NULL") == [(0,)]
    assert place.rows("SELECT count(*) FROM shards WHERE state = 'writing'") == [(0,)]
    assert not place.rows("""
        SELECT shard_id FROM shards s WHERE state = 'committed' AND rows - removed_rows
            <> (SELECT count(*) FROM extractions e WHERE e.shard_id = s.shard_id)
    """)
    history = place.rows(
        "SELECT image_url FROM feature_extraction_history WHERE model_name = :name", name=name
    )
    assert len(history) == len(set(history)) == images


def test_only_what_has_changed_is_embedded_again(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(30)
    place.extract(extract=SHARDS)
    assert shelf.answers == {200: 30}
    before = vectors(place)

    shelf.answers.clear()
    (result,) = check(place, extract=SHARDS)
    assert counts(result) == (0, 30, 0)
    assert shelf.answers == {304: 30}
    assert (result.shards, result.waiting) == (0, 0)
    assert vectors(place) == before

    for number in (3, 14, 25):
        shelf.put(number, jpeg(100 + number))
    shelf.answers.clear()
    (result,) = check(place)
    assert counts(result) == (3, 27, 0)
    assert shelf.answers == {200: 3, 304: 27}
    after = vectors(place)
    assert {image for image in after if after[image] != before[image]} == {4, 15, 26}
    assert place.rows("SELECT rows, removed_rows FROM shards ORDER BY created_at") == [
        (10, 1),
        (10, 1),
        (10, 1),
        (3, 0),
    ]
    assert_exact(place, 30)

    shelf.answers.clear()
    (nothing,) = place.extract()
    assert (nothing.run_id, shelf.answers) == (None, {})
    assert counts(check(place)[0]) == (0, 30, 0)
    assert after == fresh_vectors(place)


def test_few_changes_fill_one_shard_however_many_are_checked(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(300)
    place.extract()
    for number in (0, 150, 299):
        shelf.put(number, jpeg(1000 + number))
    (result,) = check(place, extract={"shard_rows": 280}, download={"concurrency": 1})
    assert counts(result) == (3, 297, 0)
    assert result.shards == 1


def test_dates_alone_are_enough(place: Workplace) -> None:
    shelf = Shelf(place, etags=False, dates=True)
    shelf.stock(5)
    place.extract()
    assert counts(check(place)[0]) == (0, 5, 0)
    assert shelf.answers == {200: 5, 304: 5}


def test_without_validators_the_content_decides(place: Workplace) -> None:
    shelf = Shelf(place, etags=False)
    shelf.stock(5)
    place.extract()
    shelf.put(2, jpeg(102))
    assert counts(check(place)[0]) == (1, 4, 0)
    assert shelf.answers == {200: 10}
    assert vectors(place) == fresh_vectors(place)


def test_a_tag_that_is_new_with_each_answer_embeds_nothing(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(5)
    shelf.meets = lambda n: web.Response(body=jpeg(n), headers={"ETag": f'"{time.time_ns()}"'})
    place.extract()
    tags = place.rows("SELECT etag FROM extractions ORDER BY 1")
    assert counts(check(place)[0]) == (0, 5, 0)
    assert not set(tags) & set(place.rows("SELECT etag FROM extractions ORDER BY 1"))


def test_a_catalogue_from_before_validators_were_kept_embeds_nothing_again(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(5)
    place.extract()
    place.rows("UPDATE extractions SET etag = NULL, last_modified = NULL, validators_url = NULL")
    shelf.answers.clear()
    assert counts(check(place)[0]) == (0, 5, 0)
    assert counts(check(place)[0]) == (0, 5, 0)
    assert shelf.answers == {200: 5, 304: 5}


def test_a_picture_that_is_changed_back_has_one_vector(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(3)
    place.extract()
    before = vectors(place)
    for body in (jpeg(100), jpeg(0)):
        shelf.put(0, body)
        assert counts(check(place)[0]) == (1, 2, 0)
    assert vectors(place) == before
    assert_exact(place, 3)


def test_what_cannot_be_checked_keeps_its_vector_and_is_tried_next_time(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(6)
    place.extract()
    before = vectors(place)
    broken = {
        0: web.Response(status=404),
        1: web.Response(status=410),
        2: web.Response(status=503),
        3: web.Response(body=b"<html>no picture"),
    }
    shelf.meets = broken.get
    (result,) = check(place)
    assert counts(result) == (0, 2, 4)
    reasons = {reason: n for reason, n in result.figures.failed_by_reason.items() if n}
    assert reasons == {"not_found": 1, "gone": 1, "server_error": 1, "not_an_image": 1}
    assert vectors(place) == before
    assert_exact(place, 6)
    assert place.rows("""
        SELECT failure_reason, http_status FROM extractions WHERE failure_reason IS NOT NULL
        ORDER BY image_id
    """) == [("not_found", 404), ("gone", 410), ("server_error", 503), ("not_an_image", None)]
    with place.database.transaction() as connection:
        assert list_failures(connection) == []
        listed = list_failures(connection, unchecked=True)
    assert {(each.image_id, each.reason) for each in listed} == {
        (1, "not_found"), (2, "gone"), (3, "server_error"), (4, "not_an_image")
    }  # fmt: skip
    (nothing,) = place.extract()
    assert nothing.run_id is None

    shelf.meets = lambda _number: None
    (result,) = check(place, older_than_s=3600)
    assert result.run_id is None, "nothing is an hour old"
    shelf.put(1, jpeg(101))
    assert counts(check(place)[0]) == (1, 5, 0)
    assert place.rows("SELECT count(*) FROM extractions WHERE failure_reason IS NOT NULL") == [(0,)]


def test_a_network_that_is_away_ends_a_refresh_by_its_failure_rate(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(12)
    place.extract()
    shelf.meets = lambda _number: web.Response(status=503)
    (result,) = check(place)
    assert result.exit_code is ExitCode.FAILURE_RATE
    assert "their vectors stay" in (result.error or "")
    assert_exact(place, 12)


def test_only_what_was_not_checked_for_a_while_is_checked(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(6)
    place.extract()
    place.rows("UPDATE extractions SET finished_at = now() - interval '8 d' WHERE image_id <= 4")
    assert counts(check(place, older_than_s=7 * 86_400)[0]) == (0, 4, 0)
    (nothing,) = check(place, older_than_s=7 * 86_400)
    assert (nothing.run_id, nothing.exit_code) == (None, ExitCode.OK)


def test_the_limit_leaves_the_rest_to_the_next_refresh(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(10)
    place.extract()
    assert counts(check(place, limit=4)[0]) == (0, 4, 0)
    assert counts(check(place)[0]) == (0, 6, 0)
    assert counts(check(place)[0]) == (0, 10, 0)


def test_images_without_a_vector_are_no_refresh_s_business(shelf: Shelf) -> None:
    place = shelf.place
    (nothing,) = check(place)
    assert (nothing.run_id, nothing.exit_code) == (None, ExitCode.OK)
    assert place.rows("SELECT count(*) FROM models") == [(0,)]
    shelf.stock(4)
    place.extract()
    shelf.stock(3, start=4)
    shelf.answers.clear()
    assert counts(check(place)[0]) == (0, 4, 0)
    assert shelf.answers == {304: 4}
    assert place.extract()[0].figures.done == 3


def test_several_models_ask_once_for_each_picture(shelf: Shelf) -> None:
    place = shelf.place
    place.models["small"] = TINY | {"size": 16}
    shelf.stock(10)
    place.extract("tiny", "small")
    shelf.put(3, jpeg(103))
    shelf.answers.clear()
    for result in check(place, "tiny", "small"):
        assert counts(result) == (1, 9, 0)
    assert shelf.answers == {200: 1, 304: 9}
    for name in ("tiny", "small"):
        assert_exact(place, 10, name)


def test_models_with_different_versions_are_not_told_apart_by_the_server(shelf: Shelf) -> None:
    """What is up to date for one model must not pass for that for the other."""
    place = shelf.place
    place.models["small"] = TINY | {"size": 16}
    shelf.stock(10)
    place.extract("tiny")
    shelf.put(3, jpeg(103))
    place.extract("small")
    shelf.answers.clear()
    tiny, small = check(place, "tiny", "small")
    assert (counts(tiny), counts(small)) == ((1, 9, 0), (0, 10, 0))
    assert shelf.answers == {200: 1, 304: 9}
    assert vectors(place) == fresh_vectors(place)


def test_several_workers_share_a_refresh(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(120)
    place.extract()
    for number in range(0, 120, 10):
        shelf.put(number, jpeg(200 + number))
    shelf.answers.clear()
    shelf.let_through.clear()
    shelf.arrived = 0
    workers = [
        place.start(
            *("extract", "--model", "tiny", "--refresh", "--json"),
            VSEARCH_DOWNLOAD__CONCURRENCY="2",
            VSEARCH_EXTRACT__SHARD_ROWS="20",
            VSEARCH_EXTRACT__WAIT_S="30",
        )
        for _ in range(2)
    ]
    shelf.wait_for(4)  # two of each
    shelf.let_through.set()
    told = Counter[str]()
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert worker.returncode == 0, err
        told.update(json.loads(out)["results"][0]["counts"])
    assert told == {"checked": 120, "changed": 12, "unchanged": 108, "not_checked": 0}
    assert shelf.answers == {200: 12, 304: 108}
    assert_exact(place, 120)
    assert vectors(place) == fresh_vectors(place)


def test_a_refresh_that_was_killed_is_gone_on_with(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(60)
    place.extract()
    for number in range(0, 60, 6):
        shelf.put(number, jpeg(200 + number))
    before = vectors(place)
    shelf.delay_s, shelf.arrived = 0.03, 0
    worker = place.start(
        *("extract", "--model", "tiny", "--refresh"),
        VSEARCH_DOWNLOAD__CONCURRENCY="1",
        VSEARCH_EXTRACT__LEASE_S="1",
    )
    shelf.wait_for(40)
    worker.send_signal(signal.SIGKILL)
    worker.communicate(timeout=20)
    assert vectors(place) == before, "nothing is taken away until there is something better"
    status = place.status()
    assert (status.done, status.claimed) == (60, 0)
    checked = place.rows("SELECT count(*) FROM extractions WHERE checked_at IS NOT NULL")[0][0]
    assert 0 < checked < 60
    shelf.answers.clear()
    shelf.delay_s = 0
    (result,) = check(place, extract={"lease_s": 1, "wait_s": 20})
    changed, unchanged, failed = counts(result)
    assert (changed, unchanged + checked, failed) == (10, 50, 0)
    assert shelf.answers.total() == 60 - checked
    assert_exact(place, 60)
    assert counts(check(place)[0]) == (0, 60, 0)
    assert vectors(place) == fresh_vectors(place)


@pytest.mark.long
def test_workers_that_are_killed_at_random_moments_leave_a_refresh_exact(shelf: Shelf) -> None:
    place = shelf.place
    images, kills = 600, 20
    shelf.stock(images)
    place.extract(extract={"shard_rows": 50})
    changed = random.Random(7).sample(range(images), 200)
    for number in changed:
        shelf.put(number, jpeg(10_000 + number))
    shelf.delay_s = 0.05

    def start() -> subprocess.Popen[str]:
        return place.start(
            *("extract", "--model", "tiny", "--refresh"),
            VSEARCH_DOWNLOAD__CONCURRENCY="2",
            VSEARCH_EXTRACT__LEASE_S="1",
            VSEARCH_EXTRACT__SHARD_ROWS="20",
            VSEARCH_EXTRACT__WAIT_S="30",
        )

    workers = [start() for _ in range(3)]
    for _ in range(kills):
        seen = shelf.arrived
        shelf.wait_for(seen + random.Random(seen).randrange(1, 20))
        status = place.status()
        assert (status.done, status.pending, status.claimed) == (images, 0, 0)
        workers[0].kill()
        workers.pop(0).communicate()
        workers.append(start())
    for worker in workers:
        _, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
    shelf.delay_s = 0
    (last,) = check(place)
    assert counts(last) == (0, images, 0), "all were found by the workers"
    assert_exact(place, images)
    assert vectors(place) == fresh_vectors(place)


def test_an_export_has_each_vector_once_and_new(shelf: Shelf, tmp_path: Path) -> None:
    place = shelf.place
    shelf.stock(25)
    place.extract(extract=SHARDS)
    command = ("export", "--model", "tiny", "--json", "--to", str(tmp_path / "out"))
    assert json.loads(place.vsearch(*command).out)["written"] == 3
    for number in (1, 2):
        shelf.put(number, jpeg(100 + number))
    check(place)
    told = json.loads(place.vsearch(*command).out)
    assert (told["rows"], told["written"], told["kept"], told["deleted"]) == (25, 2, 2, 1)
    found = duckdb.execute(
        f"SELECT image_id, embedding FROM read_parquet('{tmp_path}/out/*.parquet')"
    ).fetchall()
    assert len(found) == 25
    assert {image: list(vector) for image, vector in found} == vectors(place)


def test_an_export_during_a_refresh_lacks_no_vector(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shelf.place
    shelf.stock(25)
    place.extract(extract=SHARDS)
    shelf.put(24, jpeg(124))

    def refresh_first(*arguments: Any) -> pa.Table:
        monkeypatch.undo()
        assert counts(check(place)[0]) == (1, 24, 0)
        return read_part(*arguments)

    monkeypatch.setattr("visual_search.export.read_part", refresh_first)
    done = export_to(place, Folder(tmp_path / "out"), "parquet")
    assert (done.rows, done.written, done.kept, done.deleted) == (25, 4, 0, 0)
    found = duckdb.execute(
        f"SELECT image_id, embedding FROM read_parquet('{tmp_path}/out/*.parquet')"
    ).fetchall()
    assert {image: list(vector) for image, vector in found} == vectors(place)


def test_readers_of_shards_are_told_of_rows_that_do_not_count(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(5)
    place.extract()
    listing = place.vsearch("shards", "list", "--paths")
    assert "note:" not in listing.err
    shelf.put(1, jpeg(101))
    check(place)
    listing = place.vsearch("shards", "list", "--paths")
    paths = listing.out.split("\n")[:-1]
    assert len(paths) == 2
    assert "1 row of these shards no longer count" in listing.err
    # As docs/refresh.md has it.
    counting = pd.DataFrame(
        place.rows(
            "SELECT image_id, CAST(shard_id AS text) FROM extractions WHERE status = 'done'"
        ),
        columns=["image_id", "shard_id"],
    )
    found = (
        duckdb.connect()
        .register("counts", counting)
        .execute(f"""
            SELECT v.image_id, embedding
            FROM read_parquet({paths}, filename = true, hive_partitioning = true) AS v
            JOIN counts ON counts.image_id = v.image_id
                       AND counts.shard_id = parse_filename(v.filename, true)
        """)
        .fetchall()
    )
    assert len(found) == 5
    assert {image: list(vector) for image, vector in found} == vectors(place)


def test_the_command_says_what_it_did_and_would_do(shelf: Shelf) -> None:
    place = shelf.place
    shelf.stock(5)
    place.extract()
    shelf.put(1, jpeg(101))
    shelf.meets = lambda number: web.Response(status=404) if number == 4 else None
    would = pipeline.plan(place.database, place.settings(), "tiny", checks=Checks())
    assert would.claimable == 5
    done = place.vsearch("extract", "--model", "tiny", "--refresh")
    assert done.out == (
        "tiny: refreshed: 5 checked, 1 changed, 3 unchanged, 1 could not be checked (1 not_found)\n"
    )
    later = place.vsearch("extract", "--model", "tiny", "--refresh", "--older-than", "1d")
    assert (later.code, later.out) == (0, "tiny: nothing to check\n")
    document = _document(check(place)[0])
    assert document["refresh"] is True
    assert document["counts"] == {"checked": 5, "changed": 0, "unchanged": 4, "not_checked": 1}
    assert document["failed_by_reason"] == {"not_found": 1}


def test_a_wrong_option_is_refused(place: Workplace) -> None:
    done = place.vsearch("extract", "--model", "tiny", "--older-than", "7d")
    assert done.code == ExitCode.USAGE
    assert "--older-than is for --refresh" in done.err


@pytest.mark.parametrize(
    ("older_than", "retry_failed", "words"),
    [("soon", False, "such as 7d"), ("7", False, "such as 7d"), (None, True, "run them apart")],
)
def test_so_are_others(older_than: str | None, retry_failed: bool, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        _checks(older_than, refresh=True, retry_failed=retry_failed)
