"""Runs that failures stop early, and runs that they must not stop: dead links are an answer."""

import asyncio
from contextlib import ExitStack

import pytest
from aiohttp import web

from tests.catalogue import add_urls
from tests.end_to_end.workplace import jpeg
from tests.faults.stage import Stage
from tests.faults.workers import Worker
from tests.server import ImageServer
from visual_search.errors import ExitCode

STOPPED = int(ExitCode.FAILURE_RATE)
# Ten times as many as a run judges by.
IMAGES = 2_000


def test_a_thousand_dead_links_at_the_head_of_the_queue_hold_nothing_up(stage: Stage) -> None:
    """Three nights of 400 images each: what is settled is not met again."""
    dead = [stage.server.url(f"/dead/{n}.jpg") for n in range(1_000)]
    add_urls(stage.database, dead)
    stage.publish_slowly(100, delay_s=0)
    for night in (1, 2, 3):
        _extract(stage, 400).ends(0)
        assert stage.status().failed == min(1_000, 400 * night)
    assert set(stage.server.hits.values()) == {1}
    stage.assert_whole(failed=dict.fromkeys(dead, "not_found"))


@pytest.mark.parametrize("hosts", [1, 2])
def test_hosts_that_refuse_everything_stop_the_run_and_condemn_no_image(
    stage: Stage, hosts: int
) -> None:
    """Signed URLs that have expired. The one host of a catalogue is enough."""
    with ExitStack() as stack:
        servers = [stage.server]
        servers += [stack.enter_context(ImageServer()) for _ in range(hosts - 1)]
        stage.import_urls([servers[n % hosts].url(_refused(servers, n)) for n in range(IMAGES)])
        end = _extract(stage, IMAGES).ends(STOPPED)
        assert " forbidden), limit 50%" in end.err.splitlines()[-1]
        assert 200 <= sum(server.hits.total() for server in servers) < IMAGES
    assert (stage.status().failed, stage.status().pending) == (0, IMAGES)
    assert stage.rows("SELECT max(attempts) <= 1, max(crashes) FROM extractions") == [(True, 0)]


def test_one_host_that_refuses_everything_does_not_stop_the_others(stage: Stage) -> None:
    refused, good = 400, 40
    with ImageServer() as other:
        urls = [other.url(_refused([other], n)) for n in range(refused)]
        urls += [stage.serve(n) for n in range(good)]
        stage.import_urls(urls)
        _extract(stage, refused + good).ends(0)
        assert other.hits.total() == refused
    status = stage.status()
    assert (status.done, status.failed, status.pending) == (good, 0, refused)


def test_a_limit_of_all_stops_nothing(stage: Stage) -> None:
    images = 400
    stage.import_urls([stage.server.url(_refused([stage.server], n)) for n in range(images)])
    _extract(stage, images, "--max-failure-rate", "1").ends(0)
    assert stage.server.hits.total() == stage.status().pending == images


def test_what_was_refused_is_had_once_it_is_served(stage: Stage) -> None:
    images = 40
    stage.import_urls([stage.server.url(_refused([stage.server], n)) for n in range(images)])
    _extract(stage, images).ends(STOPPED)
    for n in range(images):
        stage.server.serve(f"/{n}.jpg", jpeg(n))
    stage.work("failures", "retry", "--model", "tiny", "--reason", "forbidden").ends(0)
    stage.work().ends(0)
    stage.assert_whole()


def _extract(stage: Stage, limit: int, *options: str) -> Worker:
    """Each image at most once: by chance one that failed may be due again at once."""
    return stage.work(
        *("extract", "--model", "tiny", "--limit", str(limit), *options),
        VSEARCH_EXTRACT__SHARD_ROWS="400",
    )


def _refused(servers: list[ImageServer], n: int) -> str:
    """A path that none of them serves to us."""
    path = f"/{n}.jpg"

    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.02)  # or all is asked before the run looks for the first time
        return web.Response(status=403)

    for server in servers:
        server.route(path, answer)
    return path
