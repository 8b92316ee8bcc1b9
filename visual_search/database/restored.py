"""What a backup says of work that was under way, in a catalogue where nobody works any more."""

from sqlalchemy import text
from sqlalchemy.engine import URL

from visual_search.database.connection import Database


def settle(url: URL, *, schema: str) -> None:
    """Give claims back and end runs, none of which is to blame; tell the planner what is there.

    The workers of the moment of the backup are gone, with the database they worked for. Without
    this, each image they had would count as one that killed its worker.

    Args:
        url: Of a database that nobody else has seen yet, whatever the revision of its schema.
        schema: Where its tables are.
    """
    database = Database(url, schema=schema, outage_s=0)
    try:
        with database.transaction() as connection:
            connection.execute(
                text("""
                    DELETE FROM leases;
                    UPDATE extractions SET status = 'pending', lease_token = NULL
                    WHERE status = 'claimed';
                    UPDATE shards SET state = 'abandoned' WHERE state = 'writing';
                    UPDATE runs
                    SET finished_at = heartbeat_at, outcome = 'failed',
                        message = 'the catalogue was restored from a backup made meanwhile'
                    WHERE finished_at IS NULL;
                    ANALYZE
                """)
            )
    finally:
        database.close()
