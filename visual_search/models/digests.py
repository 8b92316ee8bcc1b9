"""sha256 of files of weights, remembered by path, size and time of change."""

import hashlib
import json
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import structlog

from visual_search.errors import WeightsError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def sha256_of(path: Path, *, home: Path) -> str:
    """The sha256 of a file, in hex; computed once, then remembered under `home` if that is there.

    Raises:
        WeightsError: The file cannot be read.
    """
    store = weights_folder(home) / "digests.json"
    try:
        known, state = _read(store), _state(path)
        match known.get(str(path.absolute())):
            case [size, mtime_ns, str(digest)] if (size, mtime_ns) == state:
                return digest
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        unchanged = _state(path) == state
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from None
    # What changed while it was read is read again the next time.
    if unchanged:
        _write(store, {**known, str(path.absolute()): [*state, digest]})
    return digest


def weights_folder(home: Path) -> Path:
    """Where downloaded weights are, and files put there by hand."""
    return home / "weights"


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read(store: Path) -> dict[str, Any]:
    try:
        known = json.loads(store.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(store: Path, known: dict[str, Any]) -> None:
    """Replace the file as a whole. Of two writers one loses its entry, and computes it again.

    A home that is not there is not made for it: whoever only looks leaves nothing behind.
    """
    try:
        store.parent.mkdir(exist_ok=True)
        with NamedTemporaryFile("w", dir=store.parent, prefix=store.name, delete=False) as file:
            json.dump(known, file, indent=1)
        Path(file.name).replace(store)
    except OSError as error:
        log.debug("digest_not_remembered", store=str(store), error=error.strerror)
