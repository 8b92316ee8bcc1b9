"""Workers killed at random moments: nothing is lost, nothing done twice, little done again."""

from pathlib import Path

import pytest

from tests.end_to_end.workplace import TINY
from tests.faults.stage import HASTE, Stage
from tests.faults.watching import assert_numbers_add_up, watch_status
from tests.faults.workers import Worker

WORKERS = 4
SHARD_ROWS = int(HASTE["VSEARCH_EXTRACT__SHARD_ROWS"])
# Images between claim and record: eight for each download that may run.
IN_FLIGHT = 8 * int(HASTE["VSEARCH_DOWNLOAD__CONCURRENCY"])


@pytest.mark.parametrize(
    ("images", "kills"),
    [(300, 8), pytest.param(2_000, 50, marks=pytest.mark.long)],
)
def test_workers_killed_at_random_moments_lose_nothing(
    stage: Stage, tmp_path: Path, images: int, kills: int
) -> None:
    stage.publish_slowly(images, delay_s=0.05)
    stage.hold_back()
    counter = tmp_path / "embedded"
    workers = [_start(stage, counter) for _ in range(WORKERS)]
    with watch_status(stage.database_url) as watch:
        for _ in range(kills):
            victim = stage.freeze_one(workers, within=images // kills // 2)
            victim.kill()
            workers.remove(victim)
            workers.append(_start(stage, counter))
        stage.let_through()
        ends = [worker.wait() for worker in workers]
    assert [end.code for end in ends] == [0] * WORKERS, ends
    assert_numbers_add_up(watch, images=images)
    again = counter.stat().st_size - images
    print(f"{kills} kills, {images} images, {again} embedded again: {again / kills:.1f} a kill")
    assert again <= kills * (SHARD_ROWS + IN_FLIGHT)
    stage.assert_whole()


@pytest.mark.parametrize(
    ("images", "kills"),
    [(150, 4), pytest.param(1_000, 25, marks=pytest.mark.long)],
)
def test_workers_of_several_models_killed_at_random_moments_lose_nothing(
    stage: Stage, images: int, kills: int
) -> None:
    stage.models["small"] = TINY | {"size": 16}
    stage.publish_slowly(images, delay_s=0.05)
    stage.hold_back()

    def start() -> Worker:
        return stage.work(
            *("extract", "--model", "tiny", "--model", "small"), VSEARCH_EXTRACT__LEASE_S="3"
        )

    workers = [start() for _ in range(WORKERS)]
    for _ in range(kills):
        victim = stage.freeze_one(workers, within=images // kills // 2)
        victim.kill()
        workers.remove(victim)
        workers.append(start())
    stage.let_through()
    ends = [worker.wait() for worker in workers]
    assert [end.code for end in ends] == [0] * WORKERS, ends
    stage.assert_whole(model="tiny")
    stage.assert_whole(model="small")


def _start(stage: Stage, counter: Path) -> Worker:
    count = {
        "function": "tests.faults.points:count_embeddings",
        "with": {"counter": str(counter)},
    }
    return stage.work(patches=[count], VSEARCH_EXTRACT__LEASE_S="3")
