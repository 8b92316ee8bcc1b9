"""What a benchmark's rounds have measured, and the ratios that follow."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from benchmarks.throughput.figures import Agreement, limit

VSEARCH: Final = "vsearch"
REFERENCE: Final = "reference loop"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender in one round; rates are images a second.

    Attributes:
        steady: From the first batch's end to the last's.
        by_the_clock: Over the whole life of its process.
        core_seconds_per_stage: Of an image; only vsearch tells.
    """

    images: int
    steady: float
    by_the_clock: float
    agreement: Agreement
    core_seconds_per_stage: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Alone:
    """The network without anything around it."""

    images_per_second: float
    core_seconds: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """Everything, measured once.

    Attributes:
        inference: By size of batch.
        core_seconds_per_stage: Of an image, each stage of vsearch alone; `embed` at the size of
            batch that takes least.
        server_core_seconds: Of an image that is asked for once. Every contender pays it.
    """

    contenders: Mapping[str, Measured]
    inference: Mapping[int, Alone]
    core_seconds_per_stage: Mapping[str, float]
    server_core_seconds: float

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """From what JSON makes of it."""
        contenders = {
            name: Measured(**measured | {"agreement": Agreement(**measured["agreement"])})
            for name, measured in plain["contenders"].items()
        }
        inference = {int(size): Alone(**alone) for size, alone in plain["inference"].items()}
        return cls(**{**plain, "contenders": contenders, "inference": inference})

    @property
    def best_inference(self) -> float:
        return max(alone.images_per_second for alone in self.inference.values())


@dataclass(frozen=True, kw_only=True)
class Results:
    """All rounds, and what they were made of."""

    measured_at: str
    machine: Mapping[str, Any]
    model: str
    precision: Literal["fp32", "bf16"]
    images: int
    rounds: tuple[Round, ...]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        plain = json.loads(path.read_text())
        return cls(**plain | {"rounds": tuple(map(Round.of, plain["rounds"]))})

    def limits(self) -> list[float]:
        """Of each round."""
        cores = self.machine["cores"]
        return [limit(cores, one.core_seconds_per_stage) for one in self.rounds]

    @property
    def variants(self) -> list[str]:
        """The contenders that are vsearch, the plain one first."""
        return [name for name in self.rounds[0].contenders if name.startswith(VSEARCH)]

    def ratios(self, variant: str) -> dict[str, list[float]]:
        """A variant's steady rate to that of everything else, of each round."""
        rates = {
            "the limit of its stages": self.limits(),
            "inference alone": [one.best_inference for one in self.rounds],
        } | {
            name: [one.contenders[name].steady for one in self.rounds]
            for name in self.rounds[0].contenders
            if name == VSEARCH or name not in self.variants
        }
        ours = [one.contenders[variant].steady for one in self.rounds]
        return {
            name: [mine / theirs for mine, theirs in zip(ours, others, strict=True)]
            for name, others in rates.items()
        }
