"""Shards that something else damaged: all are found, no others, and their images come back."""

import json
import random
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from tests.faults.big import seed_many
from tests.faults.stage import Stage
from tests.shards import local_path, paths_in
from visual_search import claim, record
from visual_search.claim import Suspicion
from visual_search.images import EmbeddedImage, LeaseToken, ModelKey, RunId, ShardId
from visual_search.shard import ShardWriter, prepare_output
from visual_search.storage import Folder

ROWS = 3
RUN = RunId(uuid4())


@pytest.mark.parametrize(
    ("good", "damaged"), [(20, 10), pytest.param(1_000, 200, marks=pytest.mark.long)]
)
def test_one_wrong_byte_or_a_missing_end_is_always_found_and_repaired(
    stage: Stage, good: int, damaged: int
) -> None:
    prepare_output(Folder(stage.folder), stage.database.run(record.catalogue_id))
    shards = good + damaged
    model_key = seed_many(stage.database, shards * ROWS)
    paths = [_write_shard(stage, model_key) for _ in range(shards)]
    assert _verify(stage, "--json", code=0) == (shards, set())

    victims = random.sample(paths, damaged)
    for n, path in enumerate(victims):
        _flip_a_byte(path) if n % 2 else _cut(path)
    assert _verify(stage, "--json", code=1) == (shards, set(victims))
    assert _verify(stage, "--json", "--repair", code=0) == (shards, set(victims))
    assert _verify(stage, "--json", code=0) == (good, set())

    pending = "SELECT count(*) FROM extractions WHERE status = 'pending' AND shard_id IS NULL"
    assert stage.rows(pending) == [(damaged * ROWS,)]
    assert stage.done() == good * ROWS
    assert stage.collect_garbage(delete=True) == set(victims)
    assert paths_in(stage.folder) == set(paths) - set(victims)


def _verify(stage: Stage, *options: str, code: int) -> tuple[int, set[Path]]:
    """How many shards it checked, and which of them it found damaged."""
    printed = json.loads(stage.work("shards", "verify", *options).ends(code).out)
    return printed["checked"], {local_path(bad["uri"]) for bad in printed["damaged"]}


def _write_shard(stage: Stage, model_key: ModelKey) -> Path:
    token = LeaseToken(uuid4())
    with stage.database.transaction() as connection:
        claim.open_lease(connection, token=token, model_key=model_key, run_id=RUN, lease_s=600)
        images = claim.claim_images(
            connection, token=token, model_key=model_key, rows=ROWS, suspicion=Suspicion.NONE
        )
    writer = ShardWriter(
        Folder(stage.folder),
        shard_id=ShardId(uuid4()),
        run_id=RUN,
        model="tiny",
        model_id="tiny-00000000",
        dim=2,
        stored="float32",
        spec={},
        runtime="",
    )
    rows = [
        record.RecordedRow(
            image_id=image.image_id,
            row_in_shard=writer.write(
                EmbeddedImage(
                    image=image,
                    vector=np.random.default_rng(image.image_id).random(2, np.float32),
                    content_sha256=bytes(32),
                    width=1,
                    height=1,
                )
            ),
            content_sha256=bytes(32),
        )
        for image in images
    ]
    with stage.database.transaction() as connection:
        record.begin_shard(
            connection,
            shard_id=writer.shard_id,
            model_key=model_key,
            uri=writer.uri,
            run_id=RUN,
        )
        record.commit_shard(
            connection, token=token, model_key=model_key, shard=writer.finish(), rows=rows
        )
        claim.close_lease(connection, token)
    return local_path(writer.uri)


def _flip_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(random.randrange(path.stat().st_size))
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ random.randint(1, 255)]))


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(random.randrange(path.stat().st_size))
