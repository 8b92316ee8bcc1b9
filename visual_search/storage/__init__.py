"""Where vectors go: a folder, or an object store.

`interface.py` says what every storage does, `folder.py` and `objects.py` do it.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from visual_search.errors import UsageError
from visual_search.settings import StorageSettings
from visual_search.storage.folder import Folder
from visual_search.storage.interface import NewFile, Storage, StoredFile, sha256_of

__all__ = [
    "Folder",
    "NewFile",
    "Storage",
    "StoredFile",
    "locate",
    "open_storage",
    "sha256_of",
    "shown",
    "words_of",
]

_OBJECT_STORES = ("s3", "gs")


def open_storage(address: str, settings: StorageSettings) -> Storage:
    """The storage of an address: a path, `file://`, `s3://bucket/…` or `gs://bucket/…`.

    Nothing is looked at yet.

    Raises:
        UsageError: There is no storage of this kind, or the address says more than a place.
    """
    parts = urlsplit(address)
    if "://" not in address:
        return Folder(Path(address).absolute())
    if parts.scheme == "file":
        return Folder(Path(unquote(parts.path)))
    if parts.scheme not in _OBJECT_STORES:
        raise UsageError(
            f"output {parts.scheme}://… is of no known kind; name a folder, s3://bucket/… or "
            "gs://bucket/…"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"output {parts.scheme}://… is a bucket and a path, no more; keys belong in the "
            "environment of the object store's own tools, endpoint and region in [storage]"
        )
    if not parts.netloc:
        raise UsageError(f"output {address} names no bucket")
    # Importing pyarrow's file systems takes a while, and a folder needs none.
    from visual_search.storage.objects import ObjectStore  # noqa: PLC0415

    return ObjectStore(parts.scheme, parts.netloc, parts.path.strip("/"), settings)


def locate(uri: str, settings: StorageSettings) -> tuple[Storage, str]:
    """The storage of a file's URI, and the file's name there."""
    parent, _, name = uri.rpartition("/")
    if urlsplit(uri).scheme == "file":
        name = unquote(name)
    return open_storage(parent, settings), name


def shown(uri: str) -> str:
    """A file's URI as other programs take it: a path where it is one."""
    parts = urlsplit(uri)
    return unquote(parts.path) if parts.scheme == "file" else uri


def words_of(error: BaseException) -> str:
    """What an error says, without its number and the path, which stand beside it anyway."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
