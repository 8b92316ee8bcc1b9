"""Where whole runs take place."""

from pathlib import Path

import pytest

from tests.end_to_end.workplace import Workplace
from tests.server import ImageServer
from visual_search.database.connection import Database


@pytest.fixture
def place(
    tmp_path: Path, database: Database, database_url: str, image_server: ImageServer
) -> Workplace:
    """A home, a database, a web server and a small model."""
    return Workplace(tmp_path, database, database_url, image_server)
