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
                UPDATE alembic_version SET version_num = '0001'
            """)
        )
    assert migrate.upgrade(database) == "0001"
    assert status.count_images(database) == 3
