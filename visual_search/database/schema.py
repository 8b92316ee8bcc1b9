"""What every statement agrees on: statuses, states and locks. The tables are in `migrations/`."""

from enum import StrEnum
from typing import Final


class Status(StrEnum):
    """`extractions.status`."""

    PENDING = "pending"
    CLAIMED = "claimed"
    DONE = "done"
    FAILED = "failed"


class ShardState(StrEnum):
    """`shards.state`: readers see committed ones only.

    What is in a superseded one is in another, committed or superseded in its turn.
    """

    WRITING = "writing"
    COMMITTED = "committed"
    ABANDONED = "abandoned"
    DISCARDED = "discarded"
    SUPERSEDED = "superseded"


class RunOutcome(StrEnum):
    """`runs.outcome`; NULL while the run lives or when it died without a word."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


# Transaction-level advisory locks, so that they work through PgBouncer. Importers hold the
# seeding lock shared, seeders exclusively: then no lower image_id can appear behind a watermark.
SEEDING_LOCK: Final = 0x76_73_65_61
MIGRATION_LOCK: Final = 0x76_73_65_63
