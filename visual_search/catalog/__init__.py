"""What there is to embed: image URLs and the attributes of their products.

`readers` (with `lines` and `delimited`) and `query` turn files and the user's own tables into
rows; `columns`, `rows` and `encoding` say what a row may be; `chunk` and `store` bring the tables
up to them, `removal` takes images out, both by way of `tables`; `stats` counts.
"""

from visual_search.catalog.columns import Columns
from visual_search.catalog.query import open_query
from visual_search.catalog.readers import Format, Source, open_file
from visual_search.catalog.removal import Removed, preview_removal, remove_images
from visual_search.catalog.rows import BadRow
from visual_search.catalog.stats import CatalogueStats, catalogue_stats, newest_hosts
from visual_search.catalog.store import Imported, import_images

__all__ = [
    "BadRow",
    "CatalogueStats",
    "Columns",
    "Format",
    "Imported",
    "Removed",
    "Source",
    "catalogue_stats",
    "import_images",
    "newest_hosts",
    "open_file",
    "open_query",
    "preview_removal",
    "remove_images",
]
