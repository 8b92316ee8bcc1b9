"""Which column of a table is what."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from visual_search.errors import UsageError
from visual_search.redaction import printable

_MAX_NAMES_SHOWN: Final = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The names of the columns that are not attributes of the product.

    Attributes:
        url: `None`: not asked for, where images are named by their keys.
        image_key: `None`: the URL is the key.
        product_id: `None`: the image key is the product's id.
    """

    url: str | None = "image_url"
    image_key: str | None = None
    product_id: str | None = None


class Picked:
    """Which cells of a row are what; `None` for a column that is not asked for.

    Attributes:
        width: How many cells a row has.
        positions: Of the cells that are attributes.
        names: Of the attributes, in the order of `positions`.
    """

    def __init__(self, names: Sequence[str], columns: Columns, source: str) -> None:
        """Find the columns by their names.

        Raises:
            UsageError: A column is missing, or there twice.
        """
        require(columns, names, source)
        twice = sorted({name for name in names if names.count(name) > 1 and name})
        if twice:
            raise UsageError(f"{source} has the column {printable(twice[0], 60)!r} twice")
        wanted = (columns.url, columns.image_key, columns.product_id)
        self.width = len(names)
        self.url, self.image_key, self.product_id = (
            None if name is None else names.index(name) for name in wanted
        )
        # A column without a name (an index that pandas wrote) cannot be an attribute.
        self.positions = [n for n, name in enumerate(names) if name and name not in wanted]
        self.names = [names[n] for n in self.positions]


_OPTIONS: Final = ("--url-column", "--image-key-column", "--product-id-column")


def require(columns: Columns, names: Iterable[str], source: str) -> None:
    """Check that all columns asked for are there.

    Raises:
        UsageError: One is not; the message names those that are, and the option.
    """
    there = list(names)
    wanted = (columns.url, columns.image_key, columns.product_id)
    for name, option in zip(wanted, _OPTIONS, strict=True):
        if name is not None and name not in there:
            raise UsageError(
                f"{source} has no column {name!r}, {_shown(there)}; name one with {option}"
            )


def _shown(names: Sequence[str]) -> str:
    if not names:
        return "none at all"
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return f"only {', '.join(printable(name, 60) for name in names[:_MAX_NAMES_SHOWN])}{more}"
