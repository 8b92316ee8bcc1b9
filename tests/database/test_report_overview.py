"""What an overview finds in the database, and what it reads to find it."""

from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.catalogue import add_urls, make_model
from tests.database.test_report_showcase import work
from tests.faults.big import seed_many, vacuum
from tests.plans import explain
from visual_search.database.connection import Database
from visual_search.errors import FailureReason, ModelError
from visual_search.images import ModelKey
from visual_search.report import overview
from visual_search.report.failure_groups import failure_groups
from visual_search.report.overview.content import Overview
from visual_search.report.overview.failing_hosts import read_failing_hosts
from visual_search.status import model_statuses

LARGE = ("extractions", "images")


def add_shard(
    database: Database, model_key: ModelKey, rows: int, *, hours: float = 0, removed: int = 0
) -> None:
    """A committed shard, so many hours after the first."""
    with database.transaction() as connection:
        connection.execute(
            text("""
                INSERT INTO shards (shard_id, model_key, uri, rows, removed_rows, bytes, sha256,
                                    run_id, state, created_at)
                VALUES (gen_random_uuid(), :model_key, 'file:///nowhere', :rows, :removed,
                        :rows * 5000, '', gen_random_uuid(), 'committed',
                        timestamptz '2026-01-01 00:00Z' + make_interval(secs => :hours * 3600))
            """),
            {"model_key": model_key, "rows": rows, "removed": removed, "hours": hours},
        )


def reached(content: Overview) -> dict[str, list[int]]:
    assert content.progress is not None
    return {each.model: [count for _, count in each.points] for each in content.progress.models}


def test_a_catalogue_on_which_nothing_ran_has_an_overview(database: Database) -> None:
    content = overview.gather(database)
    assert (content.models, content.progress, content.runs) == ([], None, [])
    assert (content.failures, content.failing_hosts.hosts) == ((), [])
    assert (content.shard_rows, content.shard_bytes) == (None, None)


def test_a_model_that_was_never_run_has_no_progress(database: Database) -> None:
    make_model(database)
    content = overview.gather(database)
    assert [model.status.model for model in content.models] == ["tiny"]
    assert content.progress is None


def test_vectors_add_up_over_time_for_each_model(database: Database) -> None:
    tiny, other = make_model(database), make_model(database, "other")
    for hours, rows in ((0, 100), (48, 50), (96, 25)):
        add_shard(database, tiny, rows, hours=hours)
    add_shard(database, other, 7, hours=24, removed=2)
    content = overview.gather(database)
    assert reached(content) == {"tiny": [100, 150, 175], "other": [5]}
    assert content.progress is not None
    span_h = (content.progress.ends_at - content.progress.begins_at).total_seconds() / 3600
    assert span_h == 96
    for each in content.progress.models:
        times = [time for time, _ in each.points]
        assert times == sorted(times)
        assert content.progress.begins_at < times[0]
        assert times[-1] <= content.progress.ends_at
    # As many as the status says there are.
    assert {m.status.model: m.status.done for m in content.models} == {"tiny": 175, "other": 5}


def test_what_was_merged_is_counted_when_it_was_first_written(database: Database) -> None:
    tiny = make_model(database)
    for hours, rows in ((0, 100), (24, 50), (48, 25), (72, 150), (96, 170)):
        add_shard(database, tiny, rows, hours=hours)
    with database.transaction() as connection:
        # The first two became the fourth, and that with the third the last, without five images
        # that were removed before.
        for rows, removed, into in ((100, 0, 150), (50, 0, 150), (150, 5, 170), (25, 0, 170)):
            connection.execute(
                text("""
                    UPDATE shards SET state = 'superseded', removed_rows = :removed,
                           superseded_at = now(),
                           merged_into = (SELECT shard_id FROM shards WHERE rows = :into)
                    WHERE rows = :rows
                """),
                {"rows": rows, "removed": removed, "into": into},
            )
    assert reached(overview.gather(database)) == {"tiny": [100, 150, 175, 170, 170]}


def test_shards_that_do_not_count_are_not_counted(database: Database) -> None:
    tiny = make_model(database)
    add_shard(database, tiny, 10)
    add_shard(database, tiny, 99, hours=1)
    with database.transaction() as connection:
        connection.execute(text("UPDATE shards SET state = 'discarded' WHERE rows = 99"))
    content = overview.gather(database)
    assert reached(content) == {"tiny": [10]}
    assert content.shard_rows is not None
    assert [(b.begins, b.ends, b.shards) for b in content.shard_rows.bins if b.shards] == [
        (10, 11, 1)
    ]
    assert (content.models[0].shards, content.models[0].bytes) == (1, 50_000)


def test_shard_sizes_are_counted_in_bins_from_nought(database: Database) -> None:
    tiny = make_model(database)
    for size in (10_000, 10_000, 10_000, 9_999, 400, 1):
        add_shard(database, tiny, size)
    content = overview.gather(database)
    rows, sizes = content.shard_rows, content.shard_bytes
    assert rows is not None
    assert sizes is not None
    assert [bin_.shards for bin_ in rows.bins] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3]
    assert (rows.bins[0].begins, rows.bins[-1].ends) == (0, 11_000)
    assert (rows.median, rows.largest) == (9_999, 10_000)
    assert sum(bin_.shards for bin_ in sizes.bins) == 6
    assert sizes.largest == 50_000_000


def test_only_the_named_models_are_in_it(database: Database) -> None:
    for n, name in enumerate(("tiny", "other", "third")):
        add_shard(database, make_model(database, name), n + 1)
    content = overview.gather(database, ["third", "tiny-00000000"])
    assert [model.status.model for model in content.models] == ["third", "tiny"]
    assert reached(content).keys() == {"third", "tiny"}
    assert content.shard_rows is not None
    assert sum(bin_.shards for bin_ in content.shard_rows.bins) == 2


def test_a_model_that_is_not_there_is_an_error_with_the_way_out(database: Database) -> None:
    with pytest.raises(ModelError, match="'tiny' has not run on this catalogue"):
        overview.gather(database, ["tiny"])
    make_model(database)
    with database.transaction() as connection:
        connection.execute(text("UPDATE models SET active = false"))
    with pytest.raises(ModelError, match="`vsearch models activate tiny`"):
        overview.gather(database, ["tiny"])


def test_failures_are_told_by_reason_and_host(database: Database, tmp_path: Path) -> None:
    tiny, other = make_model(database), make_model(database, "other")
    urls = [f"http://h{n % 3}.test/{n}.jpg?token=secret" for n in range(9)]
    add_urls(database, urls)
    with database.transaction() as connection:
        connection.execute(text("UPDATE images SET host = substring(url FROM 8 FOR 7)"))
    gone = dict.fromkeys(urls[::3], FailureReason.GONE)
    work(database, tiny, tmp_path, gone | {urls[1]: FailureReason.TIMEOUT})
    work(database, other, tmp_path, dict.fromkeys(urls, FailureReason.GONE))
    content = overview.gather(database)
    assert [(g.reason, g.images, g.waiting) for g in content.failures] == [
        ("gone", 12, False),
        ("timeout", 1, True),
    ]
    assert content.failures[1].example == "http://h1.test/1.jpg?…"
    assert content.failures[1].next_attempt_at is not None
    known = content.failing_hosts
    assert [(h.host, h.failed, h.waiting, h.by_reason) for h in known.hosts] == [
        ("h0.test", 6, 0, {"gone": 6}),
        ("h1.test", 3, 1, {"gone": 3, "timeout": 1}),
        ("h2.test", 3, 0, {"gone": 3}),
    ]
    assert (known.host_count, known.looked_at) == (3, 13)
    assert "secret" not in overview.render(content)


def test_of_very_many_failures_some_of_each_reason_are_looked_at(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_key = seed_many(database, 1_000)
    with database.transaction() as connection:
        connection.execute(
            text("""
                UPDATE extractions SET status = 'failed',
                    failure_reason = CASE WHEN image_id > 990 THEN 'gone' ELSE 'not_found' END
            """)
        )
        connection.execute(text("UPDATE images SET host = 'rare.test' WHERE image_id > 990"))
    monkeypatch.setattr("visual_search.report.overview.failing_hosts._MOST_LOOKED_AT", 100)
    with database.transaction() as connection:
        known = read_failing_hosts(connection, {model_key: model_statuses(database)[0]})
    assert [(h.host, h.failed) for h in known.hosts] == [("h.test", 50), ("rare.test", 10)]
    assert (known.host_count, known.looked_at) == (2, 60)


def test_the_latest_runs_are_in_it_the_newest_first(database: Database) -> None:
    tiny, other = make_model(database), make_model(database, "other")
    with database.transaction() as connection:
        connection.execute(
            text("""
                INSERT INTO runs (run_id, model_key, host, pid, started_at, done)
                SELECT gen_random_uuid(), CASE n % 2 WHEN 0 THEN :tiny ELSE :other END, 'w', 1,
                       now() - make_interval(mins => n), n
                FROM generate_series(1, 100) AS n
            """),
            {"tiny": tiny, "other": other},
        )
    runs = overview.gather(database).runs
    assert [run.done for run in runs] == list(range(1, 25))
    assert [run.done for run in overview.gather(database, ["tiny"]).runs] == list(range(2, 50, 2))


@pytest.mark.parametrize("fresh", [False, True])
def test_of_a_large_catalogue_only_failures_are_read(
    database: Database, database_url: str, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the planner knows how many there are by now."""
    looked_at = 200
    monkeypatch.setattr("visual_search.report.overview.failing_hosts._MOST_LOOKED_AT", looked_at)
    images, failed, waiting = 50_000, 5_000, 2_000
    model_key = seed_many(database, images)
    with database.transaction() as connection:
        connection.execute(
            text("""
                UPDATE extractions SET
                    status = CASE WHEN image_id <= :failed THEN 'failed' ELSE 'done' END,
                    failure_reason = CASE WHEN image_id <= :failed THEN 'gone' END,
                    shard_id = CASE WHEN image_id > :failed THEN gen_random_uuid() END
                WHERE image_id <= :images / 2
            """),
            {"failed": failed, "images": images},
        )
        connection.execute(
            text("""
                UPDATE extractions SET next_attempt_at = now() + interval '1 h', attempts = 1,
                                       failure_reason = 'timeout'
                WHERE image_id > :settled
            """),
            {"settled": images - waiting},
        )
    if fresh:
        vacuum(database_url)
    statuses = model_statuses(database)
    steps = {
        "examples": (2, lambda connection: failure_groups(connection, statuses)),
        "hosts": (
            looked_at,
            lambda connection: read_failing_hosts(connection, {model_key: statuses[0]}),
        ),
    }
    for name, (about, step) in steps.items():
        with database.transaction() as connection:
            plans = explain(connection, partial(step, connection))
        for plan in plans:
            read = {table: plan.rows_read(table) for table in LARGE}
            assert max(read.values()) <= about + 1, (name, read)
