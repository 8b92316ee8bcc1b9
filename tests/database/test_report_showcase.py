"""What a showcase finds in the database and the shards."""

from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from sqlalchemy import Connection, text

from tests.catalogue import add_urls, make_model
from visual_search import claim, record, runs
from visual_search.database.connection import Database
from visual_search.database.schema import RunOutcome
from visual_search.errors import FailureReason, ModelError
from visual_search.images import (
    ClaimedImage,
    EmbeddedImage,
    FailedImage,
    LeaseToken,
    ModelKey,
    RunId,
    ShardId,
)
from visual_search.report import showcase
from visual_search.report.showcase.content import Showcase
from visual_search.runs import RunFigures
from visual_search.settings import StorageSettings
from visual_search.shard import ShardWriter
from visual_search.storage import Folder

DIM = 4
Outcomes = Mapping[str, FailureReason]


def work(database: Database, model_key: ModelKey, folder: Path, failing: Outcomes) -> None:
    """A run that embeds all that is due, but for images that fail, by URL."""
    run_id, token, shard_id = RunId(uuid4()), LeaseToken(uuid4()), ShardId(uuid4())
    with database.transaction() as connection:
        runs.start_run(connection, run_id=run_id, model_key=model_key)
        claim.seed_images(connection, model_key)
        claim.open_lease(connection, token=token, model_key=model_key, run_id=run_id, lease_s=60)
        images = claim.claim_images(
            connection,
            token=token,
            model_key=model_key,
            rows=1000,
            suspicion=claim.Suspicion.NONE,
        )
        record.record_failures(
            connection,
            token=token,
            model_key=model_key,
            failures=[
                FailedImage(image=image, reason=failing[image.url], detail=f"not {image.image_id}")
                for image in images
                if image.url in failing
            ],
            max_attempts=8,
            backoff_s=3600,
        )
        sound = [image for image in images if image.url not in failing]
        if sound:
            _write(connection, sound, folder, shard_id, run_id, token, model_key)
        claim.close_lease(connection, token)
        runs.finish_run(
            connection, run_id, RunFigures(), outcome=RunOutcome.COMPLETED, message=None
        )


def _write(
    connection: Connection,
    images: list[ClaimedImage],
    folder: Path,
    shard_id: ShardId,
    run_id: RunId,
    token: LeaseToken,
    model_key: ModelKey,
) -> None:
    writer = ShardWriter(
        Folder(folder),
        shard_id=shard_id,
        run_id=run_id,
        model="tiny",
        model_id="tiny-00000000",
        dim=DIM,
        stored="float32",
        spec={},
        runtime="",
    )
    rows = []
    for image in images:
        vector = np.random.default_rng(image.image_id).normal(size=DIM).astype(np.float32)
        position = writer.write(
            EmbeddedImage(image=image, vector=vector, content_sha256=bytes(32), width=8, height=8)
        )
        rows.append(
            record.RecordedRow(
                image_id=image.image_id, row_in_shard=position, content_sha256=bytes(32)
            )
        )
    record.begin_shard(
        connection, shard_id=shard_id, model_key=model_key, uri=writer.uri, run_id=run_id
    )
    record.commit_shard(
        connection, token=token, model_key=model_key, shard=writer.finish(), rows=rows
    )


def report(database: Database) -> Showcase:
    return showcase.gather(
        database, "tiny", title="My shop", pictures=lambda _url: None, storage=StorageSettings()
    )


def urls(count: int) -> list[str]:
    return [f"http://h.test/{n}.jpg?token=secret" for n in range(count)]


def test_a_model_that_never_ran_is_an_error_with_the_way_out(database: Database) -> None:
    with pytest.raises(ModelError, match="`vsearch extract --model tiny`"):
        report(database)


def test_an_empty_catalogue_has_a_report(database: Database) -> None:
    make_model(database)
    content = report(database)
    assert (content.status.total, content.shards, content.bytes) == (0, 0, 0)
    assert (content.failures, content.queries, content.facets) == ((), (), ())


def test_vectors_failures_and_run_are_in_the_report(database: Database, tmp_path: Path) -> None:
    model_key = make_model(database)
    add_urls(database, urls(30))
    work(database, model_key, tmp_path, {urls(30)[n]: FailureReason.GONE for n in (3, 5, 9)})
    content = report(database)
    assert (content.status.done, content.status.failed, content.shards) == (27, 3, 1)
    assert content.bytes == sum(file.stat().st_size for file in tmp_path.rglob("*.parquet"))
    assert (content.dim, content.compared, len(content.queries)) == (2, 27, 8)
    assert content.status.last_run is not None
    assert content.status.last_run.outcome == "completed"
    named = {query.picture.title for query in content.queries}
    assert not named & {f"http://h.test/{n}.jpg?…" for n in (3, 5, 9)}
    assert not any("secret" in title for title in named)


def test_failures_are_grouped_by_reason_final_ones_first(
    database: Database, tmp_path: Path
) -> None:
    model_key = make_model(database)
    add_urls(database, urls(5))
    reasons = (
        FailureReason.TIMEOUT,
        FailureReason.NOT_FOUND,
        FailureReason.GONE,
        FailureReason.NOT_FOUND,
        FailureReason.DNS,
    )
    work(database, model_key, tmp_path, dict(zip(urls(5), reasons, strict=True)))
    content = report(database)
    assert [(g.reason, g.images, g.next_attempt_at is None) for g in content.failures] == [
        ("not_found", 2, True),
        ("gone", 1, True),
        ("dns", 1, False),
        ("timeout", 1, False),
    ]
    assert content.failures[0].example == "http://h.test/1.jpg?…"
    assert content.failures[0].detail == "not 2"
    assert (content.queries, content.compared, content.shards) == ((), 0, 0)


def test_images_that_were_removed_are_not_shown(database: Database, tmp_path: Path) -> None:
    model_key = make_model(database)
    add_urls(database, urls(10))
    work(database, model_key, tmp_path, {})
    with database.transaction() as connection:
        connection.execute(text("DELETE FROM images WHERE image_id > 4"))
    content = report(database)
    assert content.compared == 4
    shown = {m.picture.title for query in content.queries for m in query.matches}
    assert shown == {f"http://h.test/{n}.jpg?…" for n in range(4)}


def test_products_give_titles_prices_and_facets(database: Database, tmp_path: Path) -> None:
    model_key = make_model(database)
    add_urls(database, urls(20))
    with database.transaction() as connection:
        connection.execute(
            text("""
                INSERT INTO products (product_id, attributes)
                SELECT n, jsonb_build_object(
                    'title', 'No. ' || n, 'price', n, 'category', CASE WHEN n < 5 THEN 'hat'
                    ELSE 'mug' END, 'available', n > 1, 'sizes', jsonb_build_array('S'))
                FROM generate_series(1, 20) AS n;
                INSERT INTO product_images (product_id, image_id)
                SELECT CAST(image_id AS text), image_id FROM images
            """)
        )
    work(database, model_key, tmp_path, {})
    content = report(database)
    assert {facet.attribute: dict(facet.products) for facet in content.facets} == {
        "category": {"mug": 16, "hat": 4},
        "available": {"true": 19, "false": 1},
    }
    picture = content.queries[0].picture
    number = int(picture.title.removeprefix("No. "))
    assert (picture.category, picture.price) == ("mug", f"{number:.2f}")


def test_failures_of_another_model_are_not_in_the_report(
    database: Database, tmp_path: Path
) -> None:
    add_urls(database, urls(2))
    tiny, other = make_model(database), make_model(database, "other")
    work(database, other, tmp_path, {urls(2)[0]: FailureReason.GONE})
    with database.transaction() as connection:
        claim.seed_images(connection, tiny)
    content = report(database)
    assert (content.failures, content.compared) == ((), 0)
    assert content.status.pending == 2
