"""Whole commands, from the start of Python to the exit, in a large catalogue."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from PIL import Image
from sqlalchemy import text

from benchmarks.database import tables
from benchmarks.database.build import Progressed, build, model_table
from benchmarks.database.figures import Figure
from visual_search.database.connection import open_database
from visual_search.models import registry
from visual_search.settings import load_settings

_ROUNDS: Final = 5
_DOWNLOADED: Final = 64
_DONE: Final = Progressed(name="all_done", percent=100)
_NEW: Final = "new_model"


@dataclass(frozen=True, kw_only=True)
class Shell:
    """Runs `vsearch` on a home, with models that need no weights."""

    home: Path
    config: Path

    def run(self, *arguments: str) -> float:
        """Seconds of one command."""
        began = time.monotonic()
        subprocess.run(
            self.command(*arguments), env=self.environment, check=True, stdout=subprocess.DEVNULL
        )
        return time.monotonic() - began

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "visual_search", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("VSEARCH_")}
        return inherited | {
            "VSEARCH_HOME": str(self.home),
            "VSEARCH_CONFIG": str(self.config),
            "VSEARCH_DOWNLOAD__ALLOW_NETWORKS": '["127.0.0.1/32"]',
        }


@contextmanager
def shell(home: Path, models: dict[str, int]) -> Iterator[Shell]:
    """A shell that knows these models, each by its seed."""
    with TemporaryDirectory(prefix="vsearch-benchmark-") as folder:
        config = Path(folder) / "models.toml"
        config.write_text(
            "\n".join(
                f'[models.{name}]\nbuilder = "{table.builder}"\nweights = "{table.weights}"\n'
                f'precision = "{table.precision}"\n'
                for name, table in ((name, model_table(seed)) for name, seed in models.items())
            )
        )
        yield Shell(home=home, config=config)


def in_large_catalogue(home: Path) -> Iterator[Figure]:
    """Help, status, and a new model's first run."""
    with shell(home, {}) as vsearch:
        python, cold, helped = [], [], []
        for _ in range(_ROUNDS):
            python.append(_python())
            helped.append(vsearch.run("--help"))
            cold.append(vsearch.run("status"))
        with open_database(load_settings(home=home)):
            warm = [vsearch.run("status") for _ in range(_ROUNDS)]
    yield _figure("vsearch --help", helped, 0.5, python)
    yield _figure("vsearch status, the server is up", warm, 1, python)
    yield _figure("vsearch status, the server starts and stops", cold, 1, python)
    first = [_first_download(home, seed=time.time_ns() // 1000) for _ in range(_ROUNDS)]
    yield _figure("vsearch extract, new model: first image downloaded", first, 5, python)


def nothing_to_do(home: Path, images: int) -> Iterator[Figure]:
    """A run that finds all done."""
    settings = load_settings(home=home)
    with open_database(settings, create=True) as database:
        url = tables.url_of(home)
        key = build(database, settings, images, [_DONE])[_DONE.name]
        tables.sweep(url, f"extractions_{key}")
    with shell(home, {_DONE.name: 0}) as vsearch:
        python, cold = [], []
        for _ in range(_ROUNDS):
            python.append(_python())
            cold.append(vsearch.run("extract", "--model", _DONE.name))
        with open_database(settings):
            warm = [vsearch.run("extract", "--model", _DONE.name) for _ in range(_ROUNDS)]
    what = f"vsearch extract, nothing to do, {images:,} images"
    yield _figure(f"{what}, the server is up", warm, 2, python)
    yield _figure(f"{what}, the server starts and stops", cold, 2, python)


def _first_download(home: Path, seed: int) -> float:
    settings = load_settings(home=home)
    with _Pictures() as pictures, shell(home, {_NEW: seed}) as vsearch:
        with open_database(settings) as database, database.transaction() as connection:
            connection.execute(
                text("""
                    UPDATE images SET
                        host = :host, url = 'http://' || :host || '/' || image_id || '.jpg'
                    WHERE image_id <= :images
                """),
                {"host": pictures.host, "images": _DOWNLOADED},
            )
        began = time.monotonic()
        output = ("--output", str(vsearch.config.parent / "vectors"))
        vsearch.run("extract", "--model", _NEW, "--limit", str(_DOWNLOADED), *output)
        assert pictures.first_sent_at is not None
    with open_database(settings) as database:
        with database.transaction() as connection:
            model = registry.active(connection, _NEW)
        assert model is not None
        tables.drop_model(database, model.model_key)
    return pictures.first_sent_at - began


class _Pictures:
    """A server on loopback with one picture; it notes when it was first sent."""

    def __init__(self) -> None:
        self.first_sent_at: float | None = None
        encoded = BytesIO()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(encoded, "JPEG")
        body = encoded.getvalue()

        class Answer(BaseHTTPRequestHandler):
            def do_GET(answer) -> None:  # noqa: N805 - the name that http.server wants
                answer.send_response(200)
                answer.send_header("Content-Type", "image/jpeg")
                answer.send_header("Content-Length", str(len(body)))
                answer.end_headers()
                answer.wfile.write(body)
                self.first_sent_at = self.first_sent_at or time.monotonic()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.host = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "_Pictures":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _python() -> float:
    """Seconds of a process that only imports what every command does."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import typer"], check=True)
    return time.monotonic() - began


def _figure(name: str, took: Sequence[float], wanted: float, python: Sequence[float]) -> Figure:
    """By medians: on a busy machine the slowest start of a process says little."""
    return Figure(
        name=name,
        unit="s",
        reached=sorted(took)[len(took) // 2],
        wanted=wanted,
        calibration="python -c 'import typer'",
        calibrated=sorted(python)[len(python) // 2],
    )
