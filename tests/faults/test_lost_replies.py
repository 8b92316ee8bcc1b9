"""COMMIT was sent and nothing came back: only the database knows what counts."""

import asyncio
import itertools
import re

import pytest
from aiohttp import web

from tests.catalogue import add_urls
from tests.end_to_end.workplace import jpeg
from tests.faults.proxy import Fate, Proxy
from tests.faults.stage import Stage

LOSSES = (Fate.REPLY_LOST, Fate.LOST, Fate.LATE)
SHARD_COMMIT = re.compile(r"SET state = 'committed'.*WHERE shard_id = '([^']+)'", re.DOTALL)
WHAT_IT_TOUCHES = re.compile(r"(INSERT INTO|UPDATE|DELETE FROM|CREATE TABLE|FROM) ([a-z]+)")


def test_a_shard_counts_once_whether_its_commit_or_only_the_reply_was_lost(stage: Stage) -> None:
    stage.publish_slowly(60, delay_s=0)
    fates = itertools.cycle(LOSSES)
    seen: set[str] = set()

    def decide(statements: list[str]) -> Fate:
        for sent in statements:
            named = SHARD_COMMIT.search(sent)
            if named and named[1] not in seen:
                seen.add(named[1])
                return next(fates)
        return Fate.PASSES

    with Proxy(stage.database_url, decide) as proxy:
        end = stage.work(
            VSEARCH_DATABASE_URL=proxy.url,
            VSEARCH_EXTRACT__SHARD_ROWS="3",
            VSEARCH_EXTRACT__LEASE_S="30",
        ).ends(0)
    assert sum(fate is not Fate.PASSES for fate in proxy.fates) == 20
    assert "shard_given_up" not in end.err
    assert set(stage.server.hits.values()) == {1}, "nothing was done again"
    assert stage.rows("SELECT state, count(*) FROM shards GROUP BY state") == [("committed", 20)]
    stage.assert_whole()


@pytest.mark.parametrize("fate", LOSSES, ids=lambda fate: fate.name.lower())
def test_any_transaction_may_be_repeated(stage: Stage, fate: Fate) -> None:
    stage.publish_slowly(50, delay_s=0)
    gone = [stage.server.url(f"/gone/{n}.jpg") for n in range(5)]
    busy = stage.server.url("/busy.jpg")
    _answer_at_last(stage, busy, after=2)
    add_urls(stage.database, [*gone, busy])
    seen: set[str] = set()

    def decide(statements: list[str]) -> Fate:
        """Lose the first COMMIT of each kind of transaction there is."""
        kind = str(WHAT_IT_TOUCHES.findall(" ".join(statements)))
        # Before the work begins a command that finds no database says so and ends.
        if kind in seen or "alembic" in kind or "runs" in kind:
            return Fate.PASSES
        seen.add(kind)
        return fate

    with Proxy(stage.database_url, decide) as proxy:
        stage.work(
            VSEARCH_DATABASE_URL=proxy.url,
            VSEARCH_DOWNLOAD__TRIES="1",
            VSEARCH_EXTRACT__BACKOFF_S="0.01",
            VSEARCH_EXTRACT__LEASE_S="30",
        ).ends(0)
    assert len(seen) >= 10
    assert set(stage.server.hits.values()) == {1, 3}
    assert stage.rows("SELECT count(*), max(outcome) FROM runs") == [(1, "completed")]
    assert stage.rows("SELECT max(attempts), max(crashes) FROM extractions") == [(2, 0)]
    stage.assert_whole(failed=dict.fromkeys(gone, "not_found"))


def test_a_failure_is_charged_once_even_if_the_image_was_claimed_again_meanwhile(
    stage: Stage,
) -> None:
    stage.publish_slowly(5, delay_s=0.2)
    busy = stage.server.url("/busy.jpg")
    _answer_at_last(stage, busy, after=1)
    add_urls(stage.database, [busy])
    lost: list[Fate] = []

    def decide(statements: list[str]) -> Fate:
        if lost or not any("failure_reason = f.reason" in sent for sent in statements):
            return Fate.PASSES
        lost.append(Fate.REPLY_LOST)
        return Fate.REPLY_LOST

    def claim_again() -> None:
        """As the same worker may, for the shard that it still fills."""
        claimed = stage.rows(
            """
            UPDATE extractions SET status = 'claimed', lease_token = leases.lease_token
            FROM leases, images
            WHERE extractions.image_id = images.image_id AND url = :url AND attempts = 1
            RETURNING 1
            """,
            url=busy,
        )
        assert claimed == [(1,)]

    with Proxy(stage.database_url, decide, claim_again) as proxy:
        stage.work(
            VSEARCH_DATABASE_URL=proxy.url,
            VSEARCH_DOWNLOAD__TRIES="1",
            VSEARCH_EXTRACT__BACKOFF_S="0.01",
            VSEARCH_EXTRACT__LEASE_S="30",
        ).ends(0)
    assert lost
    assert stage.rows("SELECT max(attempts) FROM extractions") == [(1,)]
    stage.assert_whole()


def _answer_at_last(stage: Stage, url: str, *, after: int, delay_s: float = 0) -> None:
    """Be busy `after` times, then send a picture, and that slowly."""
    asked = itertools.count()

    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        if next(asked) < after:
            return web.Response(status=503)
        await asyncio.sleep(delay_s)
        return web.Response(body=stage.bodies[url])

    stage.bodies[url] = jpeg(99)
    stage.server.route(url.removeprefix(stage.server.url("")), answer)
