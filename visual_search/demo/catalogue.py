"""The demo's catalogue on disk: pictures to be served, and a file of products to be imported."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from visual_search.demo.broken import BROKEN_LINKS, write_broken_files
from visual_search.demo.pictures import write_picture
from visual_search.demo.products import Product, assortment
from visual_search.demo.server import ShopServer


def draw_catalogue(folder: Path) -> list[Product]:
    """Draw every product's picture into `folder`, and lay the broken files among them.

    Returns:
        The products; that of a broken link is none of them.
    """
    folder.mkdir()
    products = assortment()
    # Threads do: Pillow draws and encodes without Python's lock.
    with ThreadPoolExecutor(thread_name_prefix="draw") as pool:
        pictures = list(pool.map(partial(write_picture, folder=folder), products))
    write_broken_files(folder, sample=next(path for path in pictures if path.suffix == ".jpg"))
    return products


def write_products(file: Path, products: list[Product], shop: ShopServer) -> None:
    """Write the catalogue as JSON lines, the broken links last."""
    rows = [*_sound_rows(products, shop), *_broken_rows(len(products), shop)]
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")


def _sound_rows(products: list[Product], shop: ShopServer) -> Iterator[dict[str, Any]]:
    for product in products:
        row = asdict(product)
        picture = row.pop("picture")
        yield row | {"currency": "EUR", "image_url": shop.url(picture)}


def _broken_rows(sound: int, shop: ShopServer) -> Iterator[dict[str, Any]]:
    for number, link in enumerate(BROKEN_LINKS, start=sound + 1):
        yield {
            "product_id": f"P{number:04}",
            "title": link.title,
            "image_url": shop.url(link.name, link.host),
        }
