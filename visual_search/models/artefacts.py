"""Files that int8 models compute with: made of one catalogue's images, they lie beside its shards.

An artefact is written once, under a name that carries its digest, and never changed.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from visual_search.errors import StorageError, WeightsError
from visual_search.models.spec import ModelSpec


def artefact_path(output: Path, spec: ModelSpec) -> Path:
    """Where the artefact of an int8 model lies, under the folder of the vectors."""
    assert spec.artefact_sha256 is not None  # noqa: S101 - only a recipe has none
    return output / "artefacts" / f"{spec.name}-{spec.artefact_sha256[:16]}.openvino.zip"


def write_artefact(path: Path, content: bytes) -> None:
    """Make the file durable, then visible.

    Raises:
        StorageError: The disk does not take it; nothing is left of it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def read_artefact(path: Path, spec: ModelSpec) -> bytes:
    """The artefact of an int8 model, as it was written.

    Raises:
        WeightsError: It is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}, which {spec.model_id} computes with, cannot be read: {error.strerror}; put "
            "it back from a copy of the folder, or use another --precision"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != spec.artefact_sha256:
        raise WeightsError(
            f"{path}, which {spec.model_id} computes with, is damaged: its sha256 begins "
            f"{digest[:16]}; put it back from a copy of the folder, or use another --precision"
        )
    return content
