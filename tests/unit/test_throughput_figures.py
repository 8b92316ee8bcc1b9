"""The throughput benchmark's arithmetic."""

import numpy as np
import pytest

from benchmarks.throughput.figures import Agreement, Spread, limit, steady_rate
from benchmarks.throughput.job import Stamp


def test_the_steady_rate_leaves_out_the_first_batch_and_all_before() -> None:
    stamps = [Stamp(100.0, 32, 1), Stamp(101.0, 32, 1), Stamp(104.0, 16, 1)]
    assert steady_rate(stamps) == 48 / 4


def test_the_steady_rate_begins_when_all_processes_are_at_work() -> None:
    """Else the second process's first batch would count, and none of the time it took."""
    stamps = [Stamp(float(n), 32, 1) for n in range(8)]
    stamps += [Stamp(n + 0.5, 32, 2) for n in range(2, 7)]
    assert steady_rate(stamps) == 9 * 32 / 4.5


def test_the_limit_shares_all_cores_out_to_the_stages() -> None:
    assert limit(2, {"decode": 0.01, "embed": 0.03}) == pytest.approx(50)


def test_a_spread_tells_the_middle_and_both_ends() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(median=3.0, least=1.0, most=10.0)


def test_agreement_sees_what_all_vectors_have_in_common_as_nothing() -> None:
    """Random weights make vectors that all point nearly the same way."""
    chance = np.random.default_rng(0)
    common = 1000 * np.ones(64, np.float32)
    reference = {f"{n}": common + chance.random(64, np.float32) for n in range(20)}
    assert Agreement.of(reference | {"more": common}, reference).least_cosine > 0.999
    others = {url: common + chance.random(64, np.float32) for url in reference}
    wrong = Agreement.of(others, reference)
    assert wrong.median_cosine < 0.5
    assert wrong.found < 0.5


def test_agreement_finds_vectors_that_stand_at_the_wrong_image() -> None:
    chance = np.random.default_rng(0)
    reference = {f"{n}": chance.random(64, np.float32) for n in range(10)}
    swapped = reference | {"0": reference["1"], "1": reference["0"]}
    assert Agreement.of(swapped, reference).found == pytest.approx(0.8)
