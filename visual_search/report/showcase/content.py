"""What a showcase says, apart from how it looks."""

from dataclasses import dataclass, field
from datetime import datetime

from visual_search.report.failure_groups import FailureGroup
from visual_search.status import ModelStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image of the catalogue as the contact sheet shows it.

    Attributes:
        thumbnail: A small JPEG; `None` where the picture could not be had again.
        category: What it was filed under, for the count of neighbours that share it.
    """

    title: str
    price: str | None
    category: str | None
    thumbnail: bytes | None = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A neighbour and its cosine similarity to the query."""

    picture: Picture
    similarity: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """An image and its nearest neighbours, the nearest first, itself left out."""

    picture: Picture
    matches: tuple[Match, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facet:
    """How many products have which value of an attribute, the most frequent first."""

    attribute: str
    products: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Showcase:
    """Everything on the page.

    Attributes:
        device: Where the model ran; `None` where nobody knows any more.
        compared: How many vectors the contact sheet searched.
    """

    title: str
    made_at: datetime
    status: ModelStatus
    dim: int
    precision: str
    device: str | None
    shards: int
    bytes: int
    failures: tuple[FailureGroup, ...]
    queries: tuple[Query, ...]
    compared: int
    facets: tuple[Facet, ...]
