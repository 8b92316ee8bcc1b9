"""What can go wrong, sorted by what stops.

VsearchError
├── ImageError             this image is recorded as failed, the run goes on
├── HostPausedError        this image is given back, to be claimed after its host's pause
├── DamagedShardError      this shard is left as it is, work on the others goes on
├── BatchError             this batch is dropped and its images are claimed again
│   ├── EmbedError         a vector is not finite
│   └── FencedError        another worker owns the images now
└── RunError               the run ends with one sentence and an exit code
    ├── InternalError      1: a state that must not be; a bug
    ├── UsageError         2: a retry cannot help until the user changes something
    │   ├── SettingsError
    │   ├── NoCatalogueError
    │   ├── SchemaError
    │   ├── ModelError
    │   └── WeightsError
    ├── FailureRateError   3: too many images fail for reasons of their surroundings
    ├── TemporaryError     75: the same command may succeed later
    │   ├── DatabaseGoneError
    │   ├── StorageError
    │   └── WeightsDownloadError
    └── StoppedError       130 or 143: a signal ended the run
"""

from enum import Enum, IntEnum


class ExitCode(IntEnum):
    """What the shell and Kubernetes see."""

    OK = 0
    FAILED = 1
    USAGE = 2
    FAILURE_RATE = 3
    WORK_PENDING = 4
    TEMPORARY = 75
    INTERRUPTED = 130
    TERMINATED = 143


class FailureReason(Enum):
    """Why an image has no vector; `value` is what the table stores.

    `retryable` reasons speak about the surroundings (network, server): the image is tried again
    later. The others are verdicts about the image itself, and final.
    """

    retryable: bool

    def __new__(cls, value: str, retryable: bool) -> "FailureReason":
        member = object.__new__(cls)
        member._value_ = value
        member.retryable = retryable
        return member

    NOT_FOUND = "not_found", False
    GONE = "gone", False
    HTTP_REFUSED = "http_refused", False
    BAD_URL = "bad_url", False
    BLOCKED_ADDRESS = "blocked_address", False
    TOO_MANY_REDIRECTS = "too_many_redirects", False
    TOO_LARGE = "too_large", False
    EMPTY_BODY = "empty_body", False
    NOT_AN_IMAGE = "not_an_image", False
    TRUNCATED_IMAGE = "truncated_image", False
    UNDECODABLE = "undecodable", False
    TOO_MANY_PIXELS = "too_many_pixels", False
    DECODE_TIMEOUT = "decode_timeout", False
    KILLS_DECODER = "kills_decoder", False
    NOT_FINITE = "not_finite", False
    KILLS_WORKER = "kills_worker", False

    DNS = "dns", True
    CONNECT = "connect", True
    TLS = "tls", True
    TIMEOUT = "timeout", True
    DISCONNECTED = "disconnected", True
    BAD_RESPONSE = "bad_response", True
    UNAUTHORIZED = "unauthorized", True
    FORBIDDEN = "forbidden", True
    RATE_LIMITED = "rate_limited", True
    SERVER_ERROR = "server_error", True


class VsearchError(Exception):
    """Root of all errors of this package. The message is one sentence for the user."""


class ImageError(VsearchError):
    """One image cannot have a vector, now or ever.

    Attributes:
        reason: Stored with the image; knows whether a later attempt can help.
        detail: One redacted line: the thing, the value, the limit.
        http_status: Status of the last answer, if there was one.
        retry_after_s: The server's own wish, if it sent one (capped at an hour).
    """

    def __init__(
        self,
        reason: FailureReason,
        detail: str,
        *,
        http_status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
        self.http_status = http_status
        self.retry_after_s = retry_after_s


class HostPausedError(VsearchError):
    """An image's host must be left alone for a while; nothing is said about the image.

    Attributes:
        host: Its name, with the port unless it is the scheme's own.
        seconds: For how long.
    """

    def __init__(self, host: str, seconds: float) -> None:
        super().__init__(f"{host} is left alone for {seconds:.0f} s")
        self.host = host
        self.seconds = seconds


class DamagedShardError(VsearchError):
    """The file of a committed shard is not as recorded; nothing may be made of it."""


class BatchError(VsearchError):
    """A batch is given up; its images are claimed again, and nobody is charged an attempt."""


class EmbedError(BatchError):
    """A vector holds a value that is not finite.

    Attributes:
        rows: Positions of the bad rows in the batch.
    """

    def __init__(self, message: str, rows: tuple[int, ...]) -> None:
        super().__init__(message)
        self.rows = rows


class FencedError(BatchError):
    """The lease is gone: another worker owns the images, this shard must not be recorded."""


class RunError(VsearchError):
    """The run ends. The message names the thing, the value and the next command to run."""

    exit_code = ExitCode.FAILED


class InternalError(RunError):
    """A state that must not be."""


class UsageError(RunError):
    """The user asked for something that cannot be done; the same call fails again."""

    exit_code = ExitCode.USAGE


class SettingsError(UsageError):
    """A setting is unknown, malformed or out of range."""


class NoCatalogueError(UsageError):
    """There is no catalogue where the command looked for one."""


class SchemaError(UsageError):
    """The database's schema is not the one this version works with."""


class ModelError(UsageError):
    """A model is unknown, wrongly specified, or not the one registered under its name."""


class WeightsError(UsageError):
    """Weights are missing or are not what the spec says."""


class FailureRateError(RunError):
    """Too large a share of the images failed for reasons of their surroundings."""

    exit_code = ExitCode.FAILURE_RATE


class TemporaryError(RunError):
    """The surroundings fail; the same command may succeed later."""

    exit_code = ExitCode.TEMPORARY


class DatabaseGoneError(TemporaryError):
    """The database does not answer."""


class StorageError(TemporaryError):
    """Vectors cannot be written."""


class WeightsDownloadError(TemporaryError):
    """Weights could not be downloaded."""


class StoppedError(RunError):
    """A signal ended the run after it had drained."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code
