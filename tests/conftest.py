"""Fixtures that every test may use: a real Postgres, a real image server, the shared data."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL

from tests.server import ImageServer
from visual_search.cores import usable_cores
from visual_search.database import embedded, migrate
from visual_search.database.connection import Database, quoted

if "PYTEST_XDIST_WORKER" in os.environ:
    # Side by side, each with a thread for every core, they would wait for each other. It is read
    # when torch is first imported, here and in the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores it, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"
TEMPLATE = "vsearch_template"


def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as there are cores: tests mostly wait for processes they started."""
    return usable_cores() * 3 // 2


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos and hostile images, kept beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no test data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def cluster() -> Iterator[URL]:
    """A private Postgres server with one migrated template database."""
    # Not under pytest's own folder, which only root may enter: the server has another user.
    with (
        TemporaryDirectory(prefix="vsearch-test-") as home,
        embedded.running(Path(home), create=True) as url,
    ):
        _administer(url, f"CREATE DATABASE {quoted(TEMPLATE)}")
        database = Database(url.set(database=TEMPLATE), schema="vsearch", outage_s=0)
        migrate.upgrade(database)
        database.close()
        yield url


@pytest.fixture
def database_url(cluster: URL) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    name = f"test_{uuid4().hex}"
    _administer(cluster, f"CREATE DATABASE {quoted(name)} TEMPLATE {quoted(TEMPLATE)}")
    yield cluster.set(database=name).render_as_string(hide_password=False)
    _administer(cluster, f"DROP DATABASE {quoted(name)} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, migrated database."""
    database = Database(database_url, schema="vsearch", outage_s=5)
    yield database
    database.close()


@pytest.fixture
def image_server() -> Iterator[ImageServer]:
    """A web server on loopback that can misbehave."""
    with ImageServer() as server:
        yield server


def _administer(url: URL, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
