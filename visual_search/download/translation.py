"""What a failed request means for the image: aiohttp's errors and HTTP statuses as ImageError.

No message of aiohttp's is passed on: they quote the URL, secrets included, and what a server sent.
"""

import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError
from yarl import URL

from visual_search.errors import FailureReason, ImageError
from visual_search.redaction import printable, redact_url

RETRY_AFTER_CAP_S: Final = 3600.0

# Every error of aiohttp's, the narrower before the wider: the first that fits counts. The last
# line is for what a later aiohttp may add; a test fails on a class that only it would catch.
REASONS: Final[tuple[tuple[type[Exception], FailureReason], ...]] = (
    (aiohttp.ClientConnectorDNSError, FailureReason.DNS),
    (aiohttp.ClientSSLError, FailureReason.TLS),
    (aiohttp.ServerTimeoutError, FailureReason.TIMEOUT),
    (aiohttp.ClientConnectorError, FailureReason.CONNECT),
    (aiohttp.ClientHttpProxyError, FailureReason.CONNECT),
    (aiohttp.ClientConnectionError, FailureReason.DISCONNECTED),
    (aiohttp.ClientPayloadError, FailureReason.DISCONNECTED),
    (aiohttp.TooManyRedirects, FailureReason.TOO_MANY_REDIRECTS),
    (aiohttp.ClientResponseError, FailureReason.BAD_RESPONSE),
    (aiohttp.InvalidURL, FailureReason.BAD_URL),
    (aiohttp.NonHttpUrlClientError, FailureReason.BAD_URL),
    (aiohttp.RedirectClientError, FailureReason.BAD_URL),
    (HttpProcessingError, FailureReason.BAD_RESPONSE),  # from the parser without C extensions
    (aiohttp.ClientError, FailureReason.BAD_RESPONSE),
)

_STATUS_REASONS: Final = {
    401: FailureReason.UNAUTHORIZED,
    403: FailureReason.FORBIDDEN,
    404: FailureReason.NOT_FOUND,
    408: FailureReason.TIMEOUT,
    410: FailureReason.GONE,
    425: FailureReason.RATE_LIMITED,
    429: FailureReason.RATE_LIMITED,
}


def translated(error: aiohttp.ClientError | HttpProcessingError, url: URL) -> ImageError:
    """The error for a request to `url` that aiohttp could not bring to its end."""
    reason = next(reason for kind, reason in REASONS if isinstance(error, kind))
    if isinstance(error.__cause__, ContentEncodingError):
        reason = FailureReason.BAD_RESPONSE
    return ImageError(reason, f"{url.raw_host}:{url.port}: {_cause(error)}")


def refused(response: aiohttp.ClientResponse) -> ImageError:
    """The error for a status that brings no image."""
    status = response.status
    reason = _STATUS_REASONS.get(status)
    if reason is None:
        match status // 100:
            case 5:
                reason = FailureReason.SERVER_ERROR
            case 1 | 2 | 3 | 4:
                reason = FailureReason.HTTP_REFUSED
            case _:
                reason = FailureReason.BAD_RESPONSE
    return ImageError(
        reason,
        f"{redact_url(str(response.url))} answered {status}",
        http_status=status,
        retry_after_s=_retry_after_s(response) if reason.retryable else None,
    )


def _cause(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        return printable(cause.strerror or type(cause).__name__)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    return type(root).__name__


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """`Retry-After` (seconds or a date), at most an hour; None if absent, past or unreadable."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        wait_s = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        # A date with zone "-0000" comes without a zone, and means UTC.
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        wait_s = (date - datetime.now(UTC)).total_seconds()
    return min(wait_s, RETRY_AFTER_CAP_S) if wait_s > 0 else None
