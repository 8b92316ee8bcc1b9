"""Files that int8 models compute with: made of one catalogue's images, they lie beside its shards.

An artefact is written once, under a name that carries its digest, and never changed.
"""

import hashlib
from pathlib import Path

from visual_search.errors import StorageError, WeightsError
from visual_search.models.spec import ModelSpec
from visual_search.storage import Folder, Storage, words_of


def artefact_name(spec: ModelSpec) -> str:
    """How the artefact of an int8 model is called in the storage of the vectors."""
    assert spec.artefact_sha256 is not None  # noqa: S101 - only a recipe has none
    return f"artefacts/{spec.name}-{spec.artefact_sha256[:16]}.openvino.zip"


def write_artefact(storage: Storage, name: str, content: bytes) -> None:
    """Write a file that models compute with.

    Raises:
        StorageError: It cannot be written; nothing is left of it.
    """
    try:
        storage.write(name, content)
    except OSError as error:
        raise StorageError(f"cannot write {storage.address}/{name}: {words_of(error)}") from error


def obtain_artefact(storage: Storage, spec: ModelSpec, *, home: Path) -> Path:
    """The artefact of an int8 model as a file of this machine.

    From an object store it is fetched once; what a fetched one holds, `read_artefact` checks.

    Raises:
        WeightsError: It is missing or damaged.
        StorageError: The storage cannot be reached, or the home not be written.
    """
    name = artefact_name(spec)
    if storage.folder is not None:
        return storage.folder / name
    kept = home / name
    if not kept.exists():
        try:
            content = storage.read(name)
        except OSError as error:
            raise _unreadable(f"{storage.address}/{name}", spec, words_of(error)) from error
        write_artefact(Folder(home), name, _checked(content, f"{storage.address}/{name}", spec))
    return kept


def read_artefact(path: Path, spec: ModelSpec) -> bytes:
    """The artefact of an int8 model, as it was written.

    Raises:
        WeightsError: It is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), spec, words_of(error)) from error
    return _checked(content, str(path), spec)


def _checked(content: bytes, where: str, spec: ModelSpec) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != spec.artefact_sha256:
        raise WeightsError(
            f"{where}, which {spec.model_id} computes with, is damaged: its sha256 begins "
            f"{digest[:16]}; put it back from a copy of the folder, or use another --precision"
        )
    return content


def _unreadable(where: str, spec: ModelSpec, words: str) -> WeightsError:
    return WeightsError(
        f"{where}, which {spec.model_id} computes with, cannot be read: {words}; put "
        "it back from a copy of the folder, or use another --precision"
    )
