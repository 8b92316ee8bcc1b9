"""Upgrades of catalogues that older versions made."""

from tests.catalogue import add_images
from tests.old_schemas import set_back
from visual_search import status
from visual_search.database import migrate
from visual_search.database.connection import Database


def test_images_that_were_there_before_they_were_counted_are_counted(database: Database) -> None:
    add_images(database, 3)
    with database.transaction() as connection:
        set_back(connection, "0001")
    assert migrate.upgrade(database) == "0001"
    assert status.count_images(database) == 3
