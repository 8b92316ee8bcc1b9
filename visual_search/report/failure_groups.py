"""Why images lack a vector, reason by reason, with an example of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from visual_search.redaction import printable, redact_url
from visual_search.status import ModelStatus, read_by_index


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureGroup:
    """All images that lack a vector for one reason, and one of them as an example.

    Attributes:
        images: Each counted once for each model that lacks its vector.
        waiting: They are tried again; else they failed for good.
        next_attempt_at: When the first of them is tried again; `None` if they failed for good.
        example: A redacted URL; `None` if none of them was left when it was looked for.
    """

    reason: str
    images: int
    waiting: bool
    next_attempt_at: datetime | None
    example: str | None
    detail: str | None


def failure_groups(
    connection: Connection, statuses: Sequence[ModelStatus]
) -> tuple[FailureGroup, ...]:
    """Failed for good first, then waiting; within them the most frequent first.

    The numbers are those of `statuses`; only the examples are looked up, each by an index.
    """
    members: dict[tuple[bool, str], list[_Member]] = {}
    for status in statuses:
        for waiting, by_reason in (
            (False, status.failed_by_reason),
            (True, status.waiting_by_reason),
        ):
            for reason, images in by_reason.items():
                members.setdefault((waiting, reason), []).append(
                    _Member(model_id=status.model_id, images=images)
                )
    found = _examples(connection, members)
    groups = [_group(waiting, reason, those, found) for (waiting, reason), those in members.items()]
    return tuple(sorted(groups, key=lambda group: (group.waiting, -group.images, group.reason)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    """One model's part of a group."""

    model_id: str
    images: int


_Members = Mapping[tuple[bool, str], Sequence[_Member]]
_Examples = Mapping[tuple[str, bool, str], Row[Any]]


def _group(
    waiting: bool, reason: str, members: Sequence[_Member], found: _Examples
) -> FailureGroup:
    largest_first = sorted(members, key=lambda member: -member.images)
    examples = [
        found[key]
        for member in largest_first
        if (key := (member.model_id, waiting, reason)) in found
    ]
    return FailureGroup(
        reason=printable(reason),
        images=sum(member.images for member in members),
        waiting=waiting,
        next_attempt_at=min((row.next_attempt_at for row in examples), default=None)
        if waiting
        else None,
        example=redact_url(examples[0].url) if examples else None,
        detail=examples[0].failure_detail if examples else None,
    )


def _examples(connection: Connection, members: _Members) -> dict[tuple[str, bool, str], Row[Any]]:
    """One image of each model, kind and reason; of waiting ones the first that is due."""
    keys = [
        (member.model_id, waiting, reason)
        for (waiting, reason), those in members.items()
        for member in those
    ]
    read_by_index(connection)
    rows = connection.execute(
        text("""
            WITH wanted AS (
                SELECT w.position, m.model_key, w.waiting, w.reason
                FROM unnest(CAST(:model_ids AS text[]), CAST(:waiting AS boolean[]),
                            CAST(:reasons AS text[]))
                     WITH ORDINALITY AS w (model_id, waiting, reason, position)
                JOIN models m USING (model_id)
            )
            SELECT f.position, f.next_attempt_at, f.failure_detail, i.url
            FROM (
                SELECT w.position, e.* FROM wanted w CROSS JOIN LATERAL (
                    SELECT image_id, next_attempt_at, failure_detail FROM extractions
                    WHERE model_key = w.model_key AND status = 'failed'
                      AND failure_reason = w.reason
                    LIMIT 1
                ) AS e
                WHERE NOT w.waiting
                UNION ALL
                SELECT w.position, e.* FROM wanted w CROSS JOIN LATERAL (
                    SELECT image_id, next_attempt_at, failure_detail FROM extractions
                    WHERE model_key = w.model_key AND status = 'pending'
                      AND next_attempt_at > statement_timestamp()
                      AND coalesce(failure_reason, 'postponed') = w.reason
                    ORDER BY next_attempt_at LIMIT 1
                ) AS e
                WHERE w.waiting
            ) AS f
            JOIN images i USING (image_id)
        """),
        {
            "model_ids": [model_id for model_id, _, _ in keys],
            "waiting": [waiting for _, waiting, _ in keys],
            "reasons": [reason for _, _, reason in keys],
        },
    )
    return {keys[row.position - 1]: row for row in rows}
