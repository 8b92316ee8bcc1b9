"""From what was measured to what is said: rates, the limit, medians and spreads."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from benchmarks.throughput.job import Stamp, Vectors


def steady_rate(stamps: Sequence[Stamp]) -> float:
    """Images a second from the end of the first batch, of each process that computes, to the last.

    So neither start-up nor loading the model count, nor what follows the last batch. What was
    downloaded and decoded before the first batch was done counts for nothing, too.
    """
    # Read backwards, what stays for each process is its first.
    firsts = {stamp.process: stamp.seconds for stamp in sorted(stamps, reverse=True)}
    begun = max(firsts.values())
    later = [stamp for stamp in stamps if stamp.seconds > begun]
    return sum(stamp.images for stamp in later) / (max(later).seconds - begun)


def limit(cores: int, core_seconds_per_stage: Mapping[str, float]) -> float:
    """Images a second of a machine whose cores never wait, and do nothing else."""
    return cores / sum(core_seconds_per_stage.values())


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of a figure that each round gave."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        ordered = sorted(values)
        return cls(median=statistics.median(ordered), least=ordered[0], most=ordered[-1])


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near a contender's vectors are to the reference's.

    Attributes:
        least_cosine: After the mean reference vector is taken off both, since what random
            weights make of any two photos is nearly the same.
        median_cosine: Likewise.
        found: The share of vectors to which, of all reference vectors, their own is nearest.
    """

    least_cosine: float
    median_cosine: float
    found: float

    @classmethod
    def of(cls, vectors: Mapping[str, Vectors], reference: Mapping[str, Vectors]) -> Self:
        theirs = np.stack([vectors[url] for url in reference])
        ours = np.stack(list(reference.values()))
        mean = ours.mean(axis=0)
        cosines = _unit(theirs - mean) @ _unit(ours - mean).T
        own = cosines.diagonal()
        return cls(
            least_cosine=float(own.min()),
            median_cosine=float(np.median(own)),
            found=float((cosines.argmax(axis=1) == np.arange(len(own))).mean()),
        )


def _unit(vectors: Vectors) -> Vectors:
    lengths: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths
