"""The values that travel between the stages, and the ids they carry."""

import random
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, NewType
from uuid import UUID

from visual_search.errors import FailureReason

if TYPE_CHECKING:  # nearly every command imports this, and few need numpy's 0.1 s
    import numpy as np
    import numpy.typing as npt

ImageId = NewType("ImageId", int)
ModelKey = NewType("ModelKey", int)
LeaseToken = NewType("LeaseToken", UUID)
ShardId = NewType("ShardId", UUID)
RunId = NewType("RunId", UUID)

Pixels = Annotated["npt.NDArray[np.uint8]", "(H, W, 3)"]
"""`(H, W, 3)` uint8 RGB, row by row, in main memory."""

Vector = Annotated["npt.NDArray[np.float32]", "(D,)"]
"""`(D,)` float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validators:
    """By what a server can be asked whether a picture is still the one that it sent.

    Attributes:
        url_hash: Of the URL that sent it, redirects followed: of any other URL the same tag or date
            says nothing.
        etag: As the server wrote it, quotes included.
    """

    url_hash: bytes
    etag: str | None
    last_modified: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """The encoded image that a recorded vector was made from."""

    content_sha256: bytes
    validators: Validators | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimedImage:
    """An image that this worker alone may work on, as long as its lease lives.

    Attributes:
        version: Of its vector, which is to be checked; `None` where it has none yet.
    """

    image_id: ImageId
    image_key: str
    url: str
    lease_token: LeaseToken
    attempts: int = 0
    crashes: int = 0
    version: Version | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """What a URL answered: the encoded image and the sha256 of exactly these bytes."""

    body: bytes = field(repr=False)
    content_sha256: bytes
    validators: Validators | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """One request to a host and what came of it, whether it was for an image or a redirect.

    Attributes:
        host: As `images.host` has it.
        seconds: From asking to the last byte, without waits that are our own.
        bytes: Of the body.
        failed: It brought neither an image nor a place to look for it.
    """

    host: str
    seconds: float
    bytes: int
    failed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedImage:
    """A vector with all that its row in a shard needs; `width` and `height` after orientation."""

    image: ClaimedImage
    vector: Vector = field(repr=False)
    content_sha256: bytes
    width: int
    height: int
    validators: Validators | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class UnchangedImage:
    """An image whose vector stays, since its URL still leads to what that was made from.

    Attributes:
        version: With the validators that the server gave last.
    """

    image: ClaimedImage
    version: Version


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedImage:
    """An image without a vector, or with one that could not be checked, and why.

    Attributes:
        jitter: From 0 to 1: where in its back-off the next attempt lies. All models that wanted
            the image have the same, so that they want it together again.
    """

    image: ClaimedImage
    reason: FailureReason
    detail: str
    http_status: int | None = None
    retry_after_s: float | None = None
    jitter: float = field(default_factory=random.random)


@dataclass(frozen=True, kw_only=True, slots=True)
class PostponedImage:
    """An image that was not asked for, since its host is to be left alone for `wait_s` more."""

    image: ClaimedImage
    wait_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenShard:
    """A complete, synced shard file that no transaction has recorded yet."""

    shard_id: ShardId
    uri: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """A shard as the table has it.

    Attributes:
        removed_rows: Those that do not count any more: their image was removed from the catalogue,
            or has a newer vector in another shard.
    """

    shard_id: ShardId
    model: str
    model_id: str
    uri: str
    rows: int
    removed_rows: int
    bytes: int
    sha256: str
    created_at: datetime
