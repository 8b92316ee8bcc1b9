"""Schemas as older versions left them, made of today's: migrations themselves only go forward."""

from typing import Final

from sqlalchemy import Connection, text

# What each revision brought, newest first.
_UNDONE: Final = {
    "0005": """
        ALTER TABLE models DROP COLUMN refresh_since;
        ALTER TABLE leases DROP COLUMN checking;
        DROP INDEX extractions_being_checked;
        ALTER TABLE extractions
            DROP COLUMN etag, DROP COLUMN last_modified, DROP COLUMN validators_url,
            DROP COLUMN checked_at, DROP CONSTRAINT extractions_claimed_check,
            DROP CONSTRAINT extractions_lease_check,
            ADD CONSTRAINT extractions_check CHECK (
                (status = 'claimed') = (lease_token IS NOT NULL));
    """,
    "0004": "DROP TABLE host_traffic;",
    "0003": """
        ALTER TABLE shards
            DROP COLUMN held_until, DROP COLUMN merged_into, DROP COLUMN superseded_at;
    """,
    "0002": "ALTER TABLE catalogue DROP COLUMN images;",
}


def set_back(connection: Connection, revision: str) -> None:
    """Take away what came after a revision."""
    for newer, undone in _UNDONE.items():
        if newer > revision:
            connection.execute(text(undone))
    connection.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": revision})
