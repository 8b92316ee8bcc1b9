"""Vectors in an object store: S3 and what speaks its protocol, Google Cloud Storage.

There is no renaming and no condition on a write here. So a file is spooled on this machine, hashed
and uploaded whole, under a name that is not used again; only then does the table know of it.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO, Final
from urllib.parse import quote, urlencode, urlsplit

import pyarrow as pa
import stamina
import structlog
from pyarrow.fs import FileSelector, FileSystem, FileType

from visual_search.errors import StorageError
from visual_search.redaction import printable
from visual_search.settings import StorageSettings
from visual_search.storage.interface import StoredFile, sha256_of

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_PART_BYTES: Final = 8 << 20
# Google's client alone would try for a quarter of an hour.
_RETRY_S: Final = 10


class ObjectStore:
    """The objects below a bucket's prefix. See `Storage`."""

    folder = None

    def __init__(self, scheme: str, bucket: str, prefix: str, settings: StorageSettings) -> None:
        self._scheme = scheme
        self._bucket = bucket
        self._root = f"{bucket}/{prefix}" if prefix else bucket
        self._settings = settings
        self.address = f"{scheme}://{self._root}"

    def uri(self, name: str) -> str:
        """`s3://bucket/prefix/name`."""
        return f"{self.address}/{name}"

    def begin(self, name: str) -> "SpooledFile":
        """A nameless file on this machine, which ends with the process."""
        return SpooledFile(self, name)

    def write(self, name: str, content: bytes) -> None:
        """Upload it, once."""
        self._upload(name, BytesIO(content), len(content))

    def try_out(self, name: str) -> None:
        """Write the object anew: who may write need not be allowed to delete."""
        self.write(name, self.read(name))

    def read(self, name: str) -> bytes:
        """All of a small object."""
        with self.open(name) as file:
            return file.read()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """An object for reading, in parts."""
        with (
            self._connected("read", name) as file_system,
            file_system.open_input_file(self._path(name)) as file,
        ):
            yield file

    def size(self, name: str) -> int:
        """How many bytes an object has."""
        with self._connected("read", name) as file_system:
            facts = file_system.get_file_info(self._path(name))
        if facts.type is not FileType.File:
            raise FileNotFoundError(f"there is no {self.uri(name)}")
        return int(facts.size)

    def files(self) -> Iterator[StoredFile]:
        """All objects."""
        with self._connected("list", "") as file_system:
            found = file_system.get_file_info(
                FileSelector(self._root, allow_not_found=True, recursive=True)
            )
        for facts in sorted(found, key=lambda facts: facts.path):
            if facts.type is FileType.File:
                yield StoredFile(
                    name=facts.path.removeprefix(f"{self._root}/"),
                    bytes=facts.size,
                    modified_at=facts.mtime.timestamp(),
                )

    def delete(self, name: str) -> None:
        """Delete an object."""
        with self._connected("delete", name) as file_system:
            try:
                file_system.delete_file(self._path(name))
            except FileNotFoundError:
                return

    def publish(self, name: str, file: BinaryIO) -> None:
        """Upload a file; try again for as long as the settings say.

        What an upload did of which the answer was lost, only the object itself can tell.

        Raises:
            StorageError: It is not known to be there.
        """
        size = file.seek(0, 2)
        for attempt in stamina.retry_context(
            on=StorageError,
            attempts=None,
            timeout=self._settings.outage_s,
            wait_initial=0.5,
            wait_max=10.0,
        ):
            with attempt:
                try:
                    self._upload(name, file, size)
                except StorageError as error:
                    if not self._holds(name, file, size):
                        raise
                    log.info("upload_took_place", uri=self.uri(name), why=str(error))

    def _upload(self, name: str, file: BinaryIO, size: int) -> None:
        file.seek(0)
        with self._connected("write", name) as file_system:
            with file_system.open_output_stream(self._path(name)) as stream:
                shutil.copyfileobj(file, stream, _PART_BYTES)
            stored = file_system.get_file_info(self._path(name)).size
        if stored != size:
            raise StorageError(f"{self.uri(name)} has {stored} bytes, {size} were sent")

    def _holds(self, name: str, file: BinaryIO, size: int) -> bool:
        """Whether the object is there with the file's very bytes."""
        try:
            if self.size(name) != size:
                return False
            with self.open(name) as stored:
                return sha256_of(stored) == sha256_of(file)
        except (OSError, StorageError):
            return False

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _connected(self, verb: str, name: str) -> Iterator[FileSystem]:
        """A file system for one step.

        With credentials of a web identity, one that is kept in a module or a cache hangs the
        process at its end.
        """
        try:
            yield FileSystem.from_uri(self._connection_uri())[0]
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            words = printable(str(error).partition("\n")[0])
            raise StorageError(f"cannot {verb} {self.uri(name)}: {words}") from error

    def _connection_uri(self) -> str:
        options: dict[str, str | int] = {}
        if self._settings.endpoint is not None:
            endpoint = urlsplit(self._settings.endpoint)
            options |= {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc}
        if self._scheme == "s3":
            # A small file takes one request, and is there with it.
            options["allow_delayed_open"] = "true"
            if self._settings.region is not None:
                options["region"] = self._settings.region
        if self._scheme == "gs":
            options["retry_limit_seconds"] = _RETRY_S
        user = "anonymous@" if self._scheme == "gs" and self._settings.anonymous else ""
        return f"{self._scheme}://{user}{quote(self._bucket)}?{urlencode(options)}"


class SpooledFile:
    """A file on this machine until it is uploaded. See `NewFile`."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self._name = name
        self.file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed by publish or discard

    def publish(self) -> None:
        """Upload it."""
        self._store.publish(self._name, self.file)
        self.file.close()

    def discard(self) -> None:
        """Forget it."""
        self.file.close()
