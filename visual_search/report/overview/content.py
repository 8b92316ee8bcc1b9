"""What an overview says, apart from how it looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from visual_search.hosts import Traffic
from visual_search.report.failure_groups import FailureGroup
from visual_search.runs import RunRecord
from visual_search.status import ModelStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """A model, how far it is, and what it has written."""

    status: ModelStatus
    dim: int
    precision: str
    shards: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """How a model's vectors became more.

    Attributes:
        points: Until when there were how many, in the order of time.
    """

    model: str
    points: Sequence[tuple[datetime, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The models with the latest work, over the time from the first run to the latest.

    Attributes:
        ends_at: Later than `begins_at`.
        models: The latest at work first.
    """

    begins_at: datetime
    ends_at: datetime
    models: Sequence[Growth]


@dataclass(frozen=True, kw_only=True, slots=True)
class FailingHost:
    """A host, and its images that lack a vector.

    Attributes:
        by_reason: All of them, failed or waiting.
    """

    host: str
    failed: int
    waiting: int
    by_reason: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class FailingHosts:
    """Where failures come from, the hosts with most of them first.

    Attributes:
        hosts: Not all, if there are many.
        host_count: How many there are.
        looked_at: How many failures were counted. Of very many only so many are, of each model
            and reason the same number at most.
    """

    hosts: Sequence[FailingHost]
    host_count: int
    looked_at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeBin:
    """How many shards are as large as `begins` or larger, and smaller than `ends`."""

    begins: float
    ends: float
    shards: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSizes:
    """Shards by one measure of them, in bins of the same breadth from nought on."""

    bins: Sequence[SizeBin]
    median: float
    largest: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """Everything on the page.

    Attributes:
        place: Which catalogue: the database, without credentials.
        images: How many the catalogue has.
        models: By name.
        progress: `None` where there is no run.
        runs: The latest, the newest first.
        slowest_hosts: Of all models together, the slowest first.
        shard_rows: `None` where there is no shard.
        shard_bytes: Likewise.
    """

    made_at: datetime
    place: str
    images: int
    models: Sequence[ModelFacts]
    progress: Progress | None
    runs: Sequence[RunRecord]
    failures: Sequence[FailureGroup]
    failing_hosts: FailingHosts
    slowest_hosts: Sequence[tuple[str, Traffic]]
    shard_rows: ShardSizes | None
    shard_bytes: ShardSizes | None
