"""What every contender is given, and what it leaves behind.

A contender is a module with a `main`, run in a process of its own with the path of a job. It leaves
Parquet files with the columns `image_url` and `embedding` in `vectors`, and for each batch that its
network has computed a line in `stamps`.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Vectors = npt.NDArray[np.float32]


class Stamp(NamedTuple):
    """A batch is done: when, by the clock that all processes of a machine share, and by whom."""

    seconds: float
    images: int
    process: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """One contender's work.

    Attributes:
        urls: The images, each URL once.
        config: A settings file of vsearch with the model's table in it.
        recipe: `same` is the network as vsearch computes it; `documented` the one that the
            contender's own documentation would lead to, in fp32.
        flags: Of `vsearch extract`; others have none.
        folder: Empty; the contender's own.
    """

    urls: tuple[str, ...]
    config: Path
    model: str
    precision: Literal["fp32", "bf16"]
    recipe: Literal["same", "documented"] = "same"
    flags: tuple[str, ...] = ()
    folder: Path

    @property
    def vectors(self) -> Path:
        return self.folder / "vectors"

    @property
    def stamps(self) -> Path:
        return self.folder / "stamps"

    def write(self) -> Path:
        path = self.folder / "job.json"
        path.write_text(json.dumps(asdict(self), default=str))
        return path

    @classmethod
    def of_command_line(cls) -> Self:
        """The job whose path is the program's argument."""
        plain = json.loads(Path(sys.argv[1]).read_text())
        plain |= {name: Path(plain[name]) for name in ("config", "folder")}
        plain |= {name: tuple(plain[name]) for name in ("urls", "flags")}
        return cls(**plain)

    def stamp(self, images: int) -> None:
        """A batch is done. Several processes may say so at once."""
        with self.stamps.open("a") as file:
            file.write(f"{time.monotonic()} {images} {os.getpid()}\n")

    def read_stamps(self) -> list[Stamp]:
        lines = (line.split() for line in self.stamps.read_text().splitlines())
        return sorted(
            Stamp(float(seconds), int(images), int(process)) for seconds, images, process in lines
        )

    def write_notes(self, **notes: Any) -> None:
        """What else there is to say."""
        (self.folder / "notes.json").write_text(json.dumps(notes))

    def read_notes(self) -> dict[str, Any]:
        path = self.folder / "notes.json"
        notes: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return notes

    def write_vectors(self, urls: Sequence[str], vectors: Vectors) -> None:
        """For contenders that have no writer of their own."""
        self.vectors.mkdir()
        embedding = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        table = pa.table({"image_url": list(urls), "embedding": embedding})
        pq.write_table(table, self.vectors / "vectors.parquet")

    def read_vectors(self) -> dict[str, Vectors]:
        """The vector of each URL."""
        table = pq.read_table(self.vectors, columns=["image_url", "embedding"])
        vectors = np.stack(table.column("embedding").to_numpy())
        return dict(
            zip(table.column("image_url").to_pylist(), vectors.astype(np.float32), strict=True)
        )
