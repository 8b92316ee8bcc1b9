"""Where failures come from, without looking at all of them where there are very many."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, text

from visual_search.images import ModelKey
from visual_search.report.overview.content import FailingHost, FailingHosts
from visual_search.status import ModelStatus, read_by_index

# A host is looked up image by image, some 100,000 in a second.
_MOST_LOOKED_AT: Final = 50_000
_HOSTS: Final = 15


def read_failing_hosts(
    connection: Connection, statuses: Mapping[ModelKey, ModelStatus]
) -> FailingHosts:
    """The hosts with most failed and waiting images of some models."""
    failed = [
        (key, reason) for key, status in statuses.items() for reason in status.failed_by_reason
    ]
    waiting = [key for key, status in statuses.items() if status.waiting]
    read_by_index(connection)
    rows = connection.execute(
        text("""
            WITH looked_at AS MATERIALIZED (
                SELECT g.reason, e.image_id, false AS waits
                FROM unnest(CAST(:failed_keys AS integer[]), CAST(:failed_reasons AS text[]))
                     AS g (model_key, reason)
                CROSS JOIN LATERAL (
                    SELECT image_id FROM extractions
                    WHERE model_key = g.model_key AND status = 'failed'
                      AND failure_reason = g.reason
                    LIMIT :most
                ) AS e
                UNION ALL
                SELECT e.reason, e.image_id, true
                FROM unnest(CAST(:waiting_keys AS integer[])) AS g (model_key)
                CROSS JOIN LATERAL (
                    SELECT coalesce(failure_reason, 'postponed') AS reason, image_id
                    FROM extractions
                    WHERE model_key = g.model_key AND status = 'pending'
                      AND next_attempt_at > statement_timestamp()
                    LIMIT :most
                ) AS e
            ),
            counted AS (
                SELECT i.host, l.reason, l.waits, count(*) AS images
                -- OFFSET 0: one by one, by the index, not by reading all images for some of them.
                FROM looked_at l CROSS JOIN LATERAL (
                    SELECT host FROM images WHERE image_id = l.image_id OFFSET 0
                ) AS i
                GROUP BY i.host, l.reason, l.waits
            )
            SELECT host, sum(images) AS images,
                   coalesce(sum(images) FILTER (WHERE waits), 0) AS waiting,
                   jsonb_agg(jsonb_build_array(reason, images)
                             ORDER BY images DESC, reason) AS reasons,
                   count(*) OVER () AS host_count, sum(sum(images)) OVER () AS looked_at
            FROM counted
            GROUP BY host ORDER BY images DESC, host LIMIT :hosts
        """),
        {
            "failed_keys": [key for key, _ in failed],
            "failed_reasons": [reason for _, reason in failed],
            "waiting_keys": waiting,
            "most": max(1, _MOST_LOOKED_AT // max(1, len(failed) + len(waiting))),
            "hosts": _HOSTS,
        },
    ).all()
    return FailingHosts(
        hosts=[
            FailingHost(
                host=row.host,
                failed=int(row.images - row.waiting),
                waiting=int(row.waiting),
                by_reason=_summed(row.reasons),
            )
            for row in rows
        ],
        host_count=rows[0].host_count if rows else 0,
        looked_at=int(rows[0].looked_at) if rows else 0,
    )


def _summed(reasons: list[tuple[str, int]]) -> dict[str, int]:
    """One reason may be final for one image, and for another be tried again."""
    summed: dict[str, int] = {}
    for reason, images in reasons:
        summed[reason] = summed.get(reason, 0) + images
    return summed
