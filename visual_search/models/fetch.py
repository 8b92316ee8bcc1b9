"""Download one large file: resumed after a cut, checked by its sha256, complete or not there."""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Final

import aiohttp
import stamina
import structlog
from stamina.instrumentation import RetryDetails, get_on_retry_hooks, set_on_retry_hooks
from tqdm import tqdm

from visual_search import __version__
from visual_search.errors import WeightsDownloadError, WeightsError
from visual_search.redaction import printable, redact_url

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_TRIES: Final = 4
_CHUNK_BYTES: Final = 1 << 20
_LATER: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class _CutError(WeightsDownloadError):
    """The transfer broke off, or the server is busy: another try may go on from here."""


def fetch(url: str, target: Path, *, sha256_begins: str, timeout_s: float) -> None:
    """Download `url` to `target`, through `target`.partial, which a later call goes on with.

    Any number of processes may ask for the same file: one downloads, the others wait for it.

    Args:
        url: http or https.
        target: Afterwards complete and checked.
        sha256_begins: How the sha256 has to begin, in hex.
        timeout_s: For the connection, and without a byte.

    Raises:
        WeightsDownloadError: The server cannot be reached or has no such file, or the file
            cannot be written.
        WeightsError: The file has another digest. Nothing is left of it.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone_with(partial) as file:
            if target.exists():
                partial.unlink()
                return
            try:
                _complete(url, file, sha256_begins=sha256_begins, timeout_s=timeout_s)
            except WeightsError:
                # Still alone with it: once the lock is gone, another process may write into it.
                partial.unlink()
                raise
            except WeightsDownloadError:
                if not _size(file):
                    partial.unlink()
                raise
            os.fsync(file.fileno())
            partial.replace(target)
    except OSError as error:
        raise WeightsDownloadError(f"cannot write {partial}: {error.strerror}") from error


@contextmanager
def _alone_with(path: Path) -> Iterator[BufferedRandom]:
    """The file at `path`, made if need be, with no other process at work on it."""
    while True:
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who held the lock before may have renamed or removed the file.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def _complete(url: str, file: BufferedRandom, *, sha256_begins: str, timeout_s: float) -> None:
    resumed = _size(file) > 0
    _download(url, file, timeout_s)
    digest = _sha256(file)
    if resumed and not digest.startswith(sha256_begins):
        # The beginning may have come from another version of the file.
        file.truncate(0)
        _download(url, file, timeout_s)
        digest = _sha256(file)
    if not digest.startswith(sha256_begins):
        raise WeightsError(
            f"{redact_url(url)} gave a file whose sha256 begins {digest[:16]}, not "
            f"{sha256_begins[:16]}; it was removed, the address or the digest is wrong"
        )


def _download(url: str, file: BufferedRandom, timeout_s: float) -> None:
    with _own_words():
        for attempt in stamina.retry_context(on=_CutError, attempts=_TRIES, timeout=None):
            with attempt:
                asyncio.run(_append(url, file, timeout_s))


@contextmanager
def _own_words() -> Iterator[None]:
    """Retries are logged as `_log_retry` does. stamina's hooks are the process's, so only now."""
    before = get_on_retry_hooks()
    set_on_retry_hooks([_log_retry])
    try:
        yield
    finally:
        set_on_retry_hooks(before)


def _log_retry(details: RetryDetails) -> None:
    log.warning(
        "weights_download_interrupted",
        error=str(details.caused_by),
        again_in_s=round(details.wait_for, 1),
    )


async def _append(url: str, file: BufferedRandom, timeout_s: float) -> None:
    """Add to `file` what it lacks."""
    have = _size(file)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
    headers = {"User-Agent": f"vsearch/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        # An address of the operator's, not of a catalogue: the proxies of the environment hold.
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers, trust_env=True) as session,
            session.get(url) as response,
        ):
            if (
                response.status == 416
                and response.headers.get("Content-Range") == f"bytes */{have}"
            ):
                return
            _check(response, url, file, have)
            await _copy(response, file)
    except (aiohttp.InvalidURL, aiohttp.TooManyRedirects) as error:
        raise WeightsDownloadError(f"{redact_url(url)}: {type(error).__name__}") from error
    except TimeoutError:
        raise _CutError(f"no answer from {redact_url(url)} for {timeout_s:g} s") from None
    except aiohttp.ClientError as error:
        raise _CutError(f"{redact_url(url)}: {_words(error)}") from error


def _check(response: aiohttp.ClientResponse, url: str, file: BufferedRandom, have: int) -> None:
    """Raise unless the body that follows belongs at the end of `file`."""
    status = response.status
    if status == 200:
        file.truncate(0)
        return
    begins = response.headers.get("Content-Range", "")
    if status == 206 and have and begins.startswith(f"bytes {have}-"):
        return
    if status in (206, 416):
        file.truncate(0)
        raise _CutError(f"{redact_url(url)} does not go on where the last download ended")
    failure = _CutError if status in _LATER else WeightsDownloadError
    raise failure(f"{redact_url(url)} answers HTTP {status}")


async def _copy(response: aiohttp.ClientResponse, file: BufferedRandom) -> None:
    have, length = _size(file), response.content_length
    with tqdm(
        desc="weights",
        disable=None,
        initial=have,
        total=None if length is None else have + length,
        unit="B",
        unit_scale=True,
    ) as progress:
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            file.write(chunk)
            progress.update(len(chunk))
    file.flush()


def _size(file: BufferedRandom) -> int:
    file.flush()
    return os.fstat(file.fileno()).st_size


def _sha256(file: BufferedRandom) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _words(error: aiohttp.ClientError) -> str:
    """What happened; aiohttp's own words may hold the whole URL."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return printable(f"no connection, {error.os_error.strerror or error.os_error}")
    return f"the transfer broke off, {type(error).__name__}"
