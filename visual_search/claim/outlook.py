"""What is left for later when nothing can be claimed now."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from visual_search.images import ModelKey


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What is left for later when nothing can be claimed now.

    Attributes:
        due_in_s: Seconds until the first pending image is due.
        lease_ends_in_s: Seconds until the first lease of any worker ends unless it is renewed.
    """

    due_in_s: float | None
    lease_ends_in_s: float | None

    @property
    def next_in_s(self) -> float | None:
        """Seconds until there may be something to claim, `None` if nothing is left."""
        known = [s for s in (self.due_in_s, self.lease_ends_in_s) if s is not None]
        return max(0.0, min(known)) if known else None


def look_out(connection: Connection, model_key: ModelKey) -> Outlook:
    """What may become claimable later, and when."""
    row = connection.execute(
        text("""
            SELECT
                (SELECT EXTRACT(epoch FROM min(next_attempt_at) - clock_timestamp())
                 FROM extractions
                 WHERE model_key = :model_key AND status = 'pending') AS due_in_s,
                (SELECT EXTRACT(epoch FROM min(expires_at) - clock_timestamp())
                 FROM leases
                 WHERE model_key = :model_key AND NOT checking) AS lease_ends_in_s
        """),
        {"model_key": model_key},
    ).one()
    return Outlook(
        due_in_s=None if row.due_in_s is None else float(row.due_in_s),
        lease_ends_in_s=None if row.lease_ends_in_s is None else float(row.lease_ends_in_s),
    )


def count_pending(connection: Connection, model_key: ModelKey) -> int:
    """How many images of the model nobody has claimed, due or not."""
    pending: int = connection.execute(
        text("""
            SELECT count(*) FROM extractions
            WHERE model_key = :model_key AND status = 'pending'
        """),
        {"model_key": model_key},
    ).scalar_one()
    return pending
