"""The demo's shop: large enough, drawn the same every time, and in the formats that shops use."""

import json
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from visual_search.demo.broken import BROKEN_LINKS, write_broken_files
from visual_search.demo.catalogue import write_products
from visual_search.demo.pictures import write_picture
from visual_search.demo.products import COLOURS, PATTERNS, Product, assortment
from visual_search.demo.server import ShopServer
from visual_search.demo.shapes import SHAPES
from visual_search.errors import FailureReason

# One or two of every category, and all colours and patterns among them.
SOME = assortment()[::13]


def drawn(products: Iterable[Product], folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    return {product.product_id: write_picture(product, folder).read_bytes() for product in products}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return drawn(SOME, tmp_path_factory.mktemp("demo") / "pictures")


def test_the_shop_sells_every_category_in_every_colour_and_pattern() -> None:
    products = assortment()
    assert len(products) == len(SHAPES) * len(COLOURS) * len(PATTERNS) >= 240
    assert len({(p.category, p.colour, p.pattern) for p in products}) == len(products)
    assert len({p.product_id for p in products}) == len({p.picture for p in products}) == 288
    formats = Counter(Path(product.picture).suffix for product in products)
    assert min(formats[suffix] for suffix in (".jpg", ".png", ".webp")) >= 10


def test_products_have_what_a_search_is_narrowed_by() -> None:
    products = assortment()
    assert len({product.brand for product in products}) >= 4
    assert {product.available for product in products} == {True, False}
    assert all(
        product.price > 0 and round(product.price, 2) == product.price for product in products
    )
    assert any(product.sizes for product in products)
    assert not any(product.sizes for product in products if not product.available)


def test_the_same_product_is_always_the_same_picture(
    pictures: dict[str, bytes], tmp_path: Path
) -> None:
    assert drawn(reversed(SOME), tmp_path / "again") == pictures
    assert assortment() == assortment()


def test_pictures_differ_and_can_be_opened(pictures: dict[str, bytes]) -> None:
    assert len(set(pictures.values())) == len(SOME)
    for body in pictures.values():
        with Image.open(BytesIO(body)) as image:
            assert min(image.size) > 150
            image.load()


def test_some_pictures_lie_on_their_side_and_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "turned"
    trousers = [product for product in assortment() if product.category == "trousers"]
    turned = 0
    for body in drawn(trousers, folder).values():
        with Image.open(BytesIO(body)) as image:
            upright = ImageOps.exif_transpose(image)
            turned += upright.size != image.size
            assert upright.getexif().get(0x0112, 1) == 1
    assert turned >= 1


def test_broken_links_have_a_reason_each_some_of_them_waiting() -> None:
    reasons = [link.reason for link in BROKEN_LINKS]
    assert len(set(reasons)) == len(reasons) >= 8
    assert {reason for reason in reasons if reason.retryable} == {
        FailureReason.TIMEOUT,
        FailureReason.SERVER_ERROR,
    }


def test_broken_files_are_small_whatever_they_pretend(
    pictures: dict[str, bytes], tmp_path: Path
) -> None:
    sample = tmp_path / "sample"
    sample.write_bytes(next(body for body in pictures.values() if body.startswith(b"\xff\xd8")))
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_broken_files(folder, sample)
    assert {file.name for file in folder.iterdir()} <= {link.name for link in BROKEN_LINKS}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000
    with pytest.raises(Image.DecompressionBombError, match="900000000 pixels"):
        Image.open(folder / "bomb.png")


def test_the_catalogue_has_a_line_for_every_product_and_broken_link(tmp_path: Path) -> None:
    file = tmp_path / "products.jsonl"
    shop = ShopServer(tmp_path)
    write_products(file, assortment(), shop)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({row["product_id"] for row in rows}) == len(rows) == 288 + len(BROKEN_LINKS)
    assert len({row["image_url"] for row in rows}) == len(rows)
    assert "picture" not in rows[0]
    assert {"title", "category", "brand", "price", "currency", "available"} <= rows[0].keys()
    assert isinstance(rows[0]["sizes"], list)
    assert [row["title"] for row in rows[288:]] == [link.title for link in BROKEN_LINKS]
    hosts = Counter(row["image_url"].split("/")[2].partition(":")[0] for row in rows)
    assert hosts == {"127.0.0.1": 298, "127.0.0.2": 1}
