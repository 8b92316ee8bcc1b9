"""A catalogue, a web server and settings for whole runs."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import text

from tests.catalogue import add_urls
from tests.server import ImageServer
from visual_search import pipeline
from visual_search.database.connection import Database
from visual_search.pipeline import ModelResult
from visual_search.pipeline.signals import StopSignals
from visual_search.settings import Settings, load_settings
from visual_search.status import ModelStatus, model_statuses

PROJECT = Path(__file__).parent.parent.parent
TINY: dict[str, Any] = {
    "builder": "tests.tiny_model:build",
    "revision": "1",
    "weights": "builder",
    "dim": 8,
    "size": 32,
    "precision": "fp32",
}
QUICK: dict[str, Any] = {
    "download": {"allow_networks": ["127.0.0.1/32"], "deadline_s": 20, "tries": 1},
    "decode": {"workers": 1},
    # Loads a small model at once, where OpenVINO converts it first.
    "embed": {"runtime": "torch", "workers": 1},
    "extract": {"wait_s": 0, "lease_s": 5},
}


def jpeg(number: int) -> bytes:
    """A small picture, another one for each number."""
    noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


class Workplace:
    """What a user has: a home, a database, pictures on a server, and a small model."""

    def __init__(self, home: Path, database: Database, url: str, server: ImageServer) -> None:
        self.home = home
        self.database = database
        self.database_url = url
        self.server = server
        self.models: dict[str, dict[str, Any]] = {"tiny": TINY}

    def settings(self, **flags: Any) -> Settings:
        merged: dict[str, Any] = {}
        for group in QUICK.keys() | flags.keys():
            given = flags.get(group)
            if isinstance(given, dict):
                merged[group] = QUICK.get(group, {}) | given
            else:
                merged[group] = given if given is not None else QUICK[group]
        return load_settings(
            home=self.home, database_url=self.database_url, models=self.models, **merged
        )

    def publish(self, count: int, *, start: int = 0) -> list[str]:
        """Put pictures on the server and into the catalogue."""
        urls = []
        for number in range(start, start + count):
            self.server.serve(f"/{number}.jpg", jpeg(number))
            urls.append(self.server.url(f"/{number}.jpg"))
        add_urls(self.database, urls)
        return urls

    def extract(self, *names: str, limit: int | None = None, **flags: Any) -> list[ModelResult]:
        return pipeline.extract(
            self.database,
            self.settings(**flags),
            names or ("tiny",),
            stop=StopSignals(),
            limit=limit,
        )

    def status(self, name: str = "tiny") -> ModelStatus:
        (found,) = [status for status in model_statuses(self.database) if status.model == name]
        return found

    def rows(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        with self.database.transaction() as connection:
            found = connection.execute(text(sql), parameters)
            return [tuple(row) for row in found] if found.returns_rows else []

    def environment(self) -> dict[str, str]:
        """For a `vsearch` process of its own."""
        config = self.home / "vsearch.toml"
        tables = "\n".join(
            f"[models.{name}]\n"
            + "\n".join(f"{key} = {_toml(value)}" for key, value in table.items())
            for name, table in self.models.items()
        )
        groups = "\n".join(
            f"[{group}]\n" + "\n".join(f"{key} = {_toml(value)}" for key, value in values.items())
            for group, values in QUICK.items()
        )
        config.write_text(f"{groups}\n{tables}\n")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("VSEARCH_")}
        return inherited | {
            "VSEARCH_CONFIG": str(config),
            "VSEARCH_HOME": str(self.home),
            "VSEARCH_DATABASE_URL": self.database_url,
            "PYTHONPATH": str(PROJECT),
        }

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start `vsearch` as a process."""
        return subprocess.Popen(
            [sys.executable, "-m", "visual_search", *arguments],
            env=self.environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def vsearch(self, *arguments: str, **variables: str) -> "Finished":
        """Run `vsearch` to its end."""
        with self.start(*arguments, **variables) as process:
            out, err = process.communicate(timeout=100)
        return Finished(process.returncode, out, err)


class Finished:
    """How a process ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


def ids(rows: Sequence[tuple[Any, ...]]) -> set[Any]:
    """The first column."""
    return {row[0] for row in rows}


def _toml(value: object) -> str:
    import json

    return json.dumps(value)
