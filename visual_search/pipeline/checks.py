"""A refresh of one model, from its beginning to its end."""

from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from visual_search import refresh
from visual_search.database.connection import Database
from visual_search.errors import RunError
from visual_search.models.registry import RegisteredModel
from visual_search.refresh import Refresh

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """That vectors are to be checked, and those embedded again whose pictures have changed.

    Attributes:
        older_than_s: Only vectors made or last checked longer ago; `None`: all.
    """

    older_than_s: float | None = None


def count_checks(connection: Connection, model: RegisteredModel, checks: Checks) -> int:
    """How many vectors a refresh would check."""
    begun = refresh.look_ahead(connection, model.model_key, older_than_s=checks.older_than_s)
    return refresh.count_outdated(connection, model.model_key, begun)


def begin_checks(database: Database, model: RegisteredModel, checks: Checks) -> Refresh | None:
    """What there is to check; `None` if nothing."""
    return database.run(
        lambda connection: refresh.begin_refresh(
            connection, model.model_key, older_than_s=checks.older_than_s
        )
    )


def finish_checks(database: Database, model: RegisteredModel, begun: Refresh) -> None:
    """Let the next refresh begin anew, if nothing is left of this one."""
    try:
        database.run(lambda connection: refresh.finish_refresh(connection, model.model_key, begun))
    except RunError as gone:
        # The next one then finds nothing left of this one, and begins anew all the same.
        log.warning("refresh_not_finished_in_database", error=str(gone))
