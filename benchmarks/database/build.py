"""A catalogue as large as wanted, in the state that months of runs leave: made by the server."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from benchmarks.database.tables import analyze, stop_autovacuum
from visual_search import claim, models
from visual_search.catalog.tables import add_to_count
from visual_search.database.connection import Database
from visual_search.images import ModelKey
from visual_search.models import registry
from visual_search.settings import ModelTable, Settings

SHARD_IMAGES: Final = 10_000
_IMAGES_AT_ONCE: Final = 500_000
_SETTLED_AT_ONCE: Final = 50 * SHARD_IMAGES


@dataclass(frozen=True, kw_only=True, slots=True)
class Progressed:
    """A model and how much of the catalogue it has settled, in the catalogue's order."""

    name: str
    percent: int


MODELS: Final = (
    Progressed(name="none_done", percent=0),
    Progressed(name="half_done", percent=50),
    Progressed(name="nearly_done", percent=99),
)


def model_table(seed: int) -> ModelTable:
    """A model that needs no file; each seed makes another."""
    return ModelTable(builder="torchvision:resnet18", weights=f"random:{seed}", precision="fp32")


def register(database: Database, settings: Settings, name: str, seed: int) -> ModelKey:
    """The key of a model, registered now if it is new."""
    spec = models.resolve(name, {name: model_table(seed)}, precision="fp32", home=settings.home)
    return database.run(lambda c: registry.register(c, spec, asked=True)).model_key


def build(
    database: Database, settings: Settings, images: int, progressed: Sequence[Progressed] = MODELS
) -> dict[str, ModelKey]:
    """Make what is missing of a catalogue with models; cut off, it goes on where it was.

    Autovacuum is off: whoever measures says what the planner knows and what is swept.
    """
    _add_images(database, images)
    keys = {}
    for seed, model in enumerate(progressed):
        keys[model.name] = model_key = register(database, settings, model.name, seed)
        stop_autovacuum(database, f"extractions_{model_key}")
        if seed_all(database, model_key):
            # What the planner learns before the first claim.
            analyze(database, f"extractions_{model_key}")
        _settle(database, model_key, images * model.percent // 100)
    return keys


def seed_all(database: Database, model_key: ModelKey, *, chunks: int = sys.maxsize) -> int:
    """Make images pending for a model, as its first run does; how many."""
    seeded = 0
    for _ in range(chunks):
        rows = database.run(lambda c: claim.seed_images(c, model_key))
        if rows == 0:
            break
        seeded += rows
    return seeded


def _add_images(database: Database, count: int) -> None:
    """Add images until there are `count`, with the URLs of a shop that nobody can reach."""
    with database.transaction() as connection:
        there: int = connection.execute(
            text("SELECT coalesce(max(image_id), 0) FROM images")
        ).scalar_one()
        if there < count:
            # Key by key, at random places, the index takes longer than all the rest.
            connection.execute(text("DROP INDEX IF EXISTS images_key_hash"))
    stop_autovacuum(database, "images")
    while there < count:
        last = min(there + _IMAGES_AT_ONCE, count)
        with database.transaction() as connection:
            connection.execute(
                text("""
                    INSERT INTO images (image_id, image_key, key_hash, url, host)
                    OVERRIDING SYSTEM VALUE
                    SELECT n, url, substring(sha256(convert_to(url, 'UTF8')) FOR 16), url, host
                    FROM generate_series(CAST(:first AS bigint), :last) AS n,
                         LATERAL (SELECT 'cdn' || n % 5 || '.shop.test' AS host) AS h,
                         LATERAL (SELECT format('https://%s/img/%s/%s_front.jpg?w=800', host,
                                                lpad(n % 1000 || '', 3, '0'),
                                                lpad(n || '', 8, '0')) AS url) AS u
                """),
                {"first": there + 1, "last": last},
            )
            add_to_count(connection, last - there)
        there = last
        print(f"{there:,} of {count:,} images", file=sys.stderr)
    with database.transaction() as connection:
        connection.execute(
            text("""
                SELECT setval(pg_get_serial_sequence('images', 'image_id'), :last),
                       set_config('maintenance_work_mem', '512MB', true)
            """),
            {"last": count},
        )
        connection.execute(
            text("CREATE UNIQUE INDEX IF NOT EXISTS images_key_hash ON images (key_hash)")
        )
    analyze(database, "images")


def _settle(database: Database, model_key: ModelKey, upto: int) -> None:
    """Settle images up to an id: done in shards of 10,000, but of a hundred one failed.

    And of a thousand one waits for its next attempt. Each row leaves an old version of itself, as
    after a run.
    """
    with database.transaction() as connection:
        there: int = connection.execute(
            text("""
                SELECT count(*) * :images FROM shards
                WHERE model_key = :model_key AND state = 'committed'
            """),
            {"model_key": model_key, "images": SHARD_IMAGES},
        ).scalar_one()
    while there < upto:
        given = {
            "model_key": model_key,
            "first": there + 1,
            "last": min(there + _SETTLED_AT_ONCE, upto),
            "images": SHARD_IMAGES,
        }
        with database.transaction() as connection:
            connection.execute(
                text("""
                    UPDATE extractions SET
                        status = 'done',
                        shard_id = CAST(md5(model_key || '/' || (image_id - 1) / :images) AS uuid),
                        row_in_shard = (image_id - 1) % :images,
                        content_sha256 = sha256(convert_to(image_id || '', 'UTF8')),
                        finished_at = now()
                    WHERE model_key = :model_key AND image_id BETWEEN :first AND :last
                      AND image_id % 100 <> 99 AND image_id % 1000 <> 500;

                    UPDATE extractions SET
                        status = 'failed', attempts = 1, failure_reason = 'not_found',
                        http_status = 404, finished_at = now()
                    WHERE model_key = :model_key AND image_id BETWEEN :first AND :last
                      AND image_id % 100 = 99;

                    UPDATE extractions SET
                        attempts = 1, failure_reason = 'timeout',
                        next_attempt_at = now() + interval '30 days'
                    WHERE model_key = :model_key AND image_id BETWEEN :first AND :last
                      AND image_id % 1000 = 500;

                    INSERT INTO shards (shard_id, model_key, uri, rows, bytes, sha256, run_id,
                                        state)
                    SELECT shard_id, :model_key, 'file:///nowhere/' || shard_id, count(*),
                           count(*) * 2200, md5(shard_id || ''), gen_random_uuid(), 'committed'
                    FROM extractions
                    WHERE model_key = :model_key AND image_id BETWEEN :first AND :last
                      AND status = 'done'
                    GROUP BY shard_id
                """),
                given,
            )
        there = int(given["last"])
        print(f"model {model_key}: {there:,} of {upto:,} settled", file=sys.stderr)
