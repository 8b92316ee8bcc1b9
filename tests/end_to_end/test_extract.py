"""The main job: every image once, whatever becomes of its neighbours."""

import asyncio
import signal
import time

import duckdb
import pytest
from aiohttp import web

from tests.catalogue import add_urls
from tests.end_to_end.workplace import Workplace, ids, jpeg
from tests.shards import local_path
from visual_search.errors import ExitCode


def test_every_image_is_downloaded_once_and_recorded_once(place: Workplace) -> None:
    place.publish(70)
    (result,) = place.extract()
    assert (result.exit_code, result.error) == (ExitCode.OK, None)
    assert (result.figures.claimed, result.figures.done, result.figures.failed) == (70, 70, 0)
    assert set(place.server.hits.values()) == {1}
    status = place.status()
    assert (status.total, status.done, status.pending, status.failed) == (70, 70, 0, 0)
    assert status.last_run is not None
    assert status.last_run.outcome == "completed"
    assert set(status.last_run.core_seconds_per_stage) == {
        "download", "decode", "embed", "write", "database",
    }  # fmt: skip
    assert place.rows("SELECT count(*) FROM leases") == [(0,)]


def test_shards_join_the_catalogue_on_image_id(place: Workplace) -> None:
    urls = place.publish(12)
    place.extract(extract={"shard_rows": 5})
    shards = place.rows("SELECT uri, rows FROM shards WHERE state = 'committed'")
    assert sorted(row[1] for row in shards) == [2, 5, 5]
    paths = [str(local_path(uri)) for uri, _ in shards]
    found = duckdb.execute(f"""
        SELECT image_id, url, len(embedding), width, height, model_id
        FROM read_parquet({paths}, hive_partitioning = true) ORDER BY image_id
    """).fetchall()
    in_table = place.rows("SELECT image_id, url FROM images ORDER BY image_id")
    assert [row[:2] for row in found] == in_table
    assert [row[1] for row in found] == urls
    assert {row[2:5] for row in found} == {(8, 64, 48)}
    positions = place.rows("SELECT count(DISTINCT (shard_id, row_in_shard)) FROM extractions")
    assert positions == [(12,)]
    history = place.rows(
        "SELECT image_url, model_name, snapshot_date FROM feature_extraction_history"
    )
    assert ids(history) == set(urls)
    assert {row[1] for row in history} == {"tiny"}


def test_a_second_run_downloads_nothing_and_the_next_day_only_what_is_new(
    place: Workplace,
) -> None:
    place.publish(20)
    place.extract()
    (again,) = place.extract()
    assert again.run_id is None
    assert again.shards == 0
    assert place.server.hits.total() == 20
    place.publish(10, start=20)
    (next_day,) = place.extract()
    assert next_day.figures.done == 10
    assert place.server.hits.total() == 30


def test_a_second_model_leaves_the_first_ones_rows_alone(place: Workplace) -> None:
    place.publish(15)
    place.extract()
    tiny = "SELECT * FROM extractions WHERE model_key = 1 ORDER BY image_id"
    before = place.rows(tiny)
    place.models["other"] = place.models["tiny"] | {"revision": "2"}
    (result,) = place.extract("other")
    assert result.figures.done == 15
    assert place.rows(tiny) == before
    assert place.status("other").done == 15


def test_each_failure_is_a_row_with_its_reason_and_the_run_goes_on(place: Workplace) -> None:
    place.publish(8)
    server = place.server

    async def slow(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    server.serve("/page.jpg", b"<!doctype html><title>Sorry</title>")
    server.serve("/cut.jpg", jpeg(1)[:-400])
    server.serve("/empty.jpg", b"")
    server.serve("/gone.jpg", b"", status=410)
    server.serve("/busy.jpg", b"", status=503)
    server.serve("/loop.jpg", b"", status=302, headers={"Location": server.url("/loop.jpg")})
    server.route("/slow.jpg", slow)
    paths = ("missing", "page", "cut", "empty", "gone", "busy", "loop", "slow")
    add_urls(place.database, [server.url(f"/{name}.jpg") for name in paths])
    add_urls(place.database, [f"http://127.0.0.2:{server.port}/private.jpg"])
    (result,) = place.extract(download={"deadline_s": 3})
    assert (result.exit_code, result.figures.done) == (ExitCode.OK, 8)
    found = place.rows("""
        SELECT i.url, e.status, e.failure_reason, e.http_status, e.attempts FROM extractions e
        JOIN images i USING (image_id) WHERE e.status <> 'done'
    """)
    named = {url.rpartition("/")[2].removesuffix(".jpg"): tuple(rest) for url, *rest in found}
    assert named == {
        "missing": ("failed", "not_found", 404, 1),
        "page": ("failed", "not_an_image", None, 1),
        "cut": ("failed", "truncated_image", None, 1),
        "empty": ("failed", "empty_body", 200, 1),
        "gone": ("failed", "gone", 410, 1),
        "loop": ("failed", "too_many_redirects", None, 1),
        "private": ("failed", "blocked_address", None, 1),
        "busy": ("pending", "server_error", 503, 1),
        "slow": ("pending", "timeout", None, 1),
    }
    status = place.status()
    assert status.total == status.done + status.pending + status.claimed + status.failed == 17
    assert (status.failed, status.waiting) == (7, 2)
    assert result.waiting == 2


def test_a_busy_server_is_asked_again_later(place: Workplace) -> None:
    answers = iter([503, 500])

    async def flaky(_request: web.BaseRequest) -> web.Response:
        status = next(answers, 200)
        return web.Response(status=status, body=jpeg(0) if status == 200 else b"")

    place.server.route("/flaky.jpg", flaky)
    add_urls(place.database, [place.server.url("/flaky.jpg")])
    (result,) = place.extract(extract={"wait_s": 5, "backoff_s": 0.1})
    assert (result.figures.done, result.figures.failed) == (1, 2)
    assert place.rows("SELECT status, attempts, failure_reason FROM extractions") == [
        ("done", 2, None)
    ]


def test_a_host_that_asks_for_a_pause_gets_it_from_every_worker(place: Workplace) -> None:
    place.server.serve("/busy.jpg", b"", status=429, headers={"Retry-After": "600"})
    add_urls(place.database, [place.server.url("/busy.jpg")])
    place.publish(30)
    place.rows("UPDATE images SET host = :host RETURNING 1", host=f"127.0.0.1:{place.server.port}")
    (result,) = place.extract(download={"per_host": 1})
    assert (result.exit_code, result.figures.done) == (ExitCode.OK, 0)
    assert (result.figures.failed, result.waiting) == (1, 31)
    assert place.server.hits == {"/busy.jpg": 1}
    postponed = "SELECT count(*) FROM extractions WHERE attempts = 0 AND status = 'pending'"
    assert place.rows(postponed) == [(30,)]

    place.models["other"] = place.models["tiny"] | {"revision": "2"}
    (result,) = place.extract("other")
    assert (result.exit_code, result.figures.claimed, result.waiting) == (ExitCode.OK, 0, 31)
    assert place.server.hits == {"/busy.jpg": 1}

    place.rows("DELETE FROM hosts RETURNING 1")
    place.rows("UPDATE extractions SET next_attempt_at = now() RETURNING 1")
    place.server.serve("/busy.jpg", jpeg(99))
    (result,) = place.extract()
    assert result.figures.done == 31


def test_a_model_that_fails_does_not_stop_the_next(place: Workplace) -> None:
    place.publish(3)
    place.models["broken"] = place.models["tiny"] | {"builder": "tests.tiny_model:build_broken"}
    results = place.extract("nameless", "broken", "tiny")
    assert [result.exit_code for result in results] == [
        ExitCode.USAGE,
        ExitCode.USAGE,
        ExitCode.OK,
    ]
    assert "nameless" in (results[0].error or "")
    assert "no such network" in (results[1].error or "")
    assert results[2].figures.done == 3
    assert place.rows("SELECT count(*) FROM extractions WHERE status = 'claimed'") == [(0,)]


def test_a_dead_network_stops_the_run_and_condemns_no_image(place: Workplace) -> None:
    dead = [f"http://127.0.0.1:9/{n}.jpg" for n in range(300)]
    add_urls(place.database, dead)
    (result,) = place.extract()
    assert result.exit_code is ExitCode.FAILURE_RATE
    assert "connect" in (result.error or "")
    assert place.rows("SELECT DISTINCT status FROM extractions") == [("pending",)]
    assert place.status().failed == 0


def test_dead_links_are_verdicts_and_stop_nothing(place: Workplace) -> None:
    add_urls(place.database, [place.server.url(f"/none/{n}.jpg") for n in range(250)])
    place.publish(5)
    (result,) = place.extract()
    assert result.exit_code is ExitCode.OK
    assert (result.figures.done, place.status().failed) == (5, 250)


def test_limit_counts_claimed_images(place: Workplace) -> None:
    place.publish(30)
    (result,) = place.extract(limit=12)
    assert result.figures.claimed == 12
    assert place.status().done == 12
    assert place.status().pending == 18


def test_an_image_removed_during_the_run_is_not_done(place: Workplace) -> None:
    place.publish(3)

    async def remove_then_answer(_request: web.BaseRequest) -> web.Response:
        place.rows("DELETE FROM extractions WHERE image_id = 4")
        place.rows("DELETE FROM images WHERE image_id = 4")
        place.rows("UPDATE catalogue SET images = images - 1")
        return web.Response(body=jpeg(9))

    place.server.route("/removed.jpg", remove_then_answer)
    add_urls(place.database, [place.server.url("/removed.jpg")])
    (result,) = place.extract()
    assert result.exit_code is ExitCode.OK
    status = place.status()
    assert (status.total, status.done, status.pending) == (3, 3, 0)


@pytest.mark.parametrize("moment", ["downloading", "recording"])
def test_killed_in_the_middle_the_next_run_ends_with_every_image_once(
    place: Workplace, moment: str
) -> None:
    place.publish(120)

    async def killer(_request: web.BaseRequest) -> web.Response:
        worker.send_signal(signal.SIGKILL)
        return web.Response(body=jpeg(5))

    place.server.route("/kill.jpg", killer)
    add_urls(place.database, [place.server.url("/kill.jpg")])
    variables = {"VSEARCH_EXTRACT__SHARD_ROWS": "40" if moment == "recording" else "10000"}
    worker = place.start("extract", "--model", "tiny", **variables)
    worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGKILL
    claimed = place.rows("SELECT count(*) FROM extractions WHERE status = 'claimed'")
    assert claimed > [(0,)]
    place.server.serve("/kill.jpg", jpeg(5))
    (result,) = place.extract(extract={"wait_s": 20})
    assert result.exit_code is ExitCode.OK
    status = place.status()
    assert (status.total, status.done) == (121, 121)
    listed = place.rows("SELECT uri, rows FROM shards WHERE state = 'committed'")
    paths = [str(local_path(uri)) for uri, _ in listed]
    counted = duckdb.execute(
        f"SELECT count(*), count(DISTINCT image_id) FROM read_parquet({paths})"
    ).fetchall()
    assert counted == [(121, 121)]
    assert sum(rows for _, rows in listed) == 121


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"]
)
def test_a_signal_drains_and_leaves_nothing_claimed(
    place: Workplace, number: signal.Signals, code: int
) -> None:
    place.publish(400)

    async def answer(_request: web.BaseRequest) -> web.Response:
        worker.send_signal(number)
        return web.Response(body=jpeg(5))

    place.server.route("/signal.jpg", answer)
    add_urls(place.database, [place.server.url("/signal.jpg")])
    add_urls(place.database, [place.server.url(f"/{n}.jpg?again") for n in range(400)])
    began = time.monotonic()
    worker = place.start("extract", "--model", "tiny")
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == code, (out, err)
    assert time.monotonic() - began < 40
    left = dict(place.rows("SELECT status, count(*) FROM extractions GROUP BY status"))
    assert "claimed" not in left
    assert left["done"] >= 1
    assert left["pending"] >= 1
    assert place.rows("SELECT DISTINCT attempts + crashes FROM extractions") == [(0,)]
    assert place.rows("SELECT outcome FROM runs") == [("stopped",)]


def test_workers_started_together_share_the_work(place: Workplace) -> None:
    place.publish(200)
    workers = [place.start("extract", "--model", "tiny") for _ in range(2)]
    ends = [(*worker.communicate(timeout=100), worker.returncode) for worker in workers]
    assert [end[2] for end in ends] == [0, 0], ends
    assert place.status().done == 200
    assert set(place.server.hits.values()) == {1}
    assert place.rows("SELECT sum(rows) FROM shards WHERE state = 'committed'") == [(200,)]
