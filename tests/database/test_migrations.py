"""Upgrades of catalogues that older versions made."""

from sqlalchemy import text

from tests.catalogue import add_images
from visual_search import status
from visual_search.database import migrate
from visual_search.database.connection import Database


def test_images_that_were_there_before_they_were_counted_are_counted(database: Database) -> None:
    add_images(database, 3)
    with database.transaction() as connection:
        connection.execute(
            text("""
                ALTER TABLE shards DROP COLUMN held_until, DROP COLUMN merged_into,
                                   DROP COLUMN superseded_at;
                ALTER TABLE catalogue DROP COLUMN images;
                DROP TABLE host_traffic;
                ALTER TABLE models DROP COLUMN refresh_since;
                ALTER TABLE leases DROP COLUMN checking;
                ALTER TABLE extractions
                    DROP COLUMN etag, DROP COLUMN last_modified, DROP COLUMN validators_url,
                    DROP COLUMN checked_at, DROP CONSTRAINT extractions_claimed_check,
                    DROP CONSTRAINT extractions_lease_check,
                    ADD CONSTRAINT extractions_check CHECK (
                        (status = 'claimed') = (lease_token IS NOT NULL));
                DROP INDEX extractions_being_checked;
                UPDATE alembic_version SET version_num = '0001'
            """)
        )
    assert migrate.upgrade(database) == "0001"
    assert status.count_images(database) == 3
