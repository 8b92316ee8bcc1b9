"""Failure reasons in words for readers who do not know the code."""

from typing import Final

from visual_search.errors import FailureReason

_WORDS: Final = {
    FailureReason.NOT_FOUND: "The server does not have it (404)",
    FailureReason.GONE: "Taken down for good (410)",
    FailureReason.HTTP_REFUSED: "The server refused the request",
    FailureReason.BAD_URL: "Not a usable address",
    FailureReason.BLOCKED_ADDRESS: "Leads to a private address",
    FailureReason.TOO_MANY_REDIRECTS: "Redirected too often",
    FailureReason.TOO_LARGE: "File too large",
    FailureReason.EMPTY_BODY: "An empty file",
    FailureReason.NOT_AN_IMAGE: "Not an image, whatever its name says",
    FailureReason.TRUNCATED_IMAGE: "The file ends too early",
    FailureReason.UNDECODABLE: "Damaged, cannot be decoded",
    FailureReason.TOO_MANY_PIXELS: "Too many pixels",
    FailureReason.DECODE_TIMEOUT: "Took too long to decode",
    FailureReason.KILLS_DECODER: "Crashed its decoder",
    FailureReason.NOT_FINITE: "The model's answer was not a number",
    FailureReason.KILLS_WORKER: "Its worker died, more than once",
    FailureReason.DNS: "Host name not found",
    FailureReason.CONNECT: "No connection",
    FailureReason.TLS: "No secure connection",
    FailureReason.TIMEOUT: "Not there in time",
    FailureReason.DISCONNECTED: "The connection broke off",
    FailureReason.BAD_RESPONSE: "The answer made no sense",
    FailureReason.UNAUTHORIZED: "Access needs a sign-in (401)",
    FailureReason.FORBIDDEN: "Access forbidden (403)",
    FailureReason.RATE_LIMITED: "The server asked for fewer requests",
    FailureReason.SERVER_ERROR: "The server had a problem",
}
_BY_VALUE: Final = {
    # Not a failure of the image: it was claimed, and put off for its host's sake.
    "postponed": "Put off, its host needs a pause",
    **{reason.value: in_words for reason, in_words in _WORDS.items()},
}


def words(reason: str) -> str:
    """A reason as the table stores it, in words; one that is not known as it is."""
    return _BY_VALUE.get(reason, reason)
