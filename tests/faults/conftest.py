"""Fixtures of the fault tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stage import Stage
from tests.faults.workers import Nursery
from tests.server import ImageServer
from visual_search.database.connection import Database


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where workers are forked from."""
    with Nursery(tmp_path_factory.mktemp("workers")) as nursery:
        nursery.wait_ready()
        yield nursery


@pytest.fixture
def stage(
    tmp_path: Path,
    database: Database,
    database_url: str,
    image_server: ImageServer,
    nursery: Nursery,
) -> Iterator[Stage]:
    """A catalogue without images, and workers that none outlive the test."""
    yield Stage(tmp_path, database, database_url, image_server, nursery)
    nursery.kill_all()
