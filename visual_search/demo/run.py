"""The demo from beginning to end: draw, serve, import, extract, extract again, report."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from visual_search import models, pipeline
from visual_search.catalog import Columns, import_images, open_file
from visual_search.cores import usable_cores
from visual_search.database.connection import Database, open_database
from visual_search.demo.broken import BROKEN_LINKS
from visual_search.demo.catalogue import draw_catalogue, write_products
from visual_search.demo.folder import PICTURES, PRODUCTS, REPORT, emptied_folder, writing
from visual_search.demo.products import Product
from visual_search.demo.server import HOST, ShopServer
from visual_search.errors import RunError
from visual_search.failures import FailureRecord, list_failures
from visual_search.models import weights
from visual_search.pipeline import ModelResult
from visual_search.pipeline.signals import StopSignals
from visual_search.record import list_shards
from visual_search.report import showcase
from visual_search.report.page.document import write_page
from visual_search.settings import DecodeSettings, DownloadSettings, ExtractSettings, Settings
from visual_search.status import as_table, duration, model_statuses

MODEL: Final = "efficientnet_lite0"
_SHOP: Final = "Demo shop"
_TITLES: Final = {link.name: link.title for link in BROKEN_LINKS}
_DEADLINE_S: Final = 2.5
_TRIES: Final = 2
# What waits must still wait when the second run comes; the pause before a try is drawn from
# nought to this.
_BACKOFF_S: Final = 24 * 3600.0

Tell = Callable[[str], None]


def run(settings: Settings, tell: Tell) -> None:
    """Show the real pipeline at work on a catalogue of the demo's own.

    Args:
        settings: The user's. The demo keeps to `demo` in their home, and takes from them only
            what suits the machine: device, precision, batch size.
        tell: Gets what there is to say, paragraph by paragraph.

    Raises:
        RunError: It cannot be shown here, or a signal stopped it.
    """
    began = time.monotonic()
    folder = settings.home / "demo"
    own = _own_settings(settings, folder)
    with emptied_folder(folder):
        _check_weights(own)
        tell(f"vsearch demo: everything stays in {folder}, your own catalogue is not touched.")
        with open_database(own, create=True) as database:
            products = _draw(folder, tell)
            with ShopServer(folder / PICTURES) as shop:
                _import(database, folder, products, shop, tell)
                _extract(database, own, shop, tell)
                _show_failures(database, tell)
                _extract_again(database, own, shop, tell)
            _report(database, own, tell)
    tell(
        f"All of it took {time.monotonic() - began:.1f} s. The report, for a browser:\n"
        f"  {(folder / REPORT).absolute()}\n\n{_next_steps(settings, folder)}"
    )


def _own_settings(settings: Settings, folder: Path) -> Settings:
    """Those that make the demo the same wherever it runs, and reach nothing but its own server."""
    return settings.model_copy(
        update={
            "home": folder,
            "database_url": None,
            "output": None,
            "models": {},
            "download": DownloadSettings(
                allow_networks=(IPv4Network(HOST),), deadline_s=_DEADLINE_S, tries=_TRIES
            ),
            "decode": DecodeSettings(),
            "extract": ExtractSettings(wait_s=0, backoff_s=_BACKOFF_S),
        }
    )


def _check_weights(settings: Settings) -> None:
    """Before anything is drawn: without weights there is nothing to show."""
    spec = models.resolve(MODEL, settings.models, precision="fp32", home=settings.home)
    weights.obtain(spec, settings.weights, home=settings.home)


def _draw(folder: Path, tell: Tell) -> list[Product]:
    began = time.monotonic()
    with writing(folder):
        products = draw_catalogue(folder / PICTURES)
    tell(f"Drew {len(products)} product pictures in {time.monotonic() - began:.1f} s.")
    return products


def _import(
    database: Database, folder: Path, products: list[Product], shop: ShopServer, tell: Tell
) -> None:
    began = time.monotonic()
    with writing(folder):
        write_products(folder / PRODUCTS, products, shop)
    with open_file(str(folder / PRODUCTS), columns=Columns(product_id="product_id")) as source:
        imported = import_images(database, source)
    tell(
        f"Imported {imported.rows} products from {folder / PRODUCTS} in "
        f"{time.monotonic() - began:.1f} s; {len(BROKEN_LINKS)} of their image links are broken, "
        f"each in its own way. A server at {shop.url('')} stands for the shop."
    )


def _extract(database: Database, settings: Settings, shop: ShopServer, tell: Tell) -> None:
    began = time.monotonic()
    result = _run_pipeline(database, settings)
    rate = result.figures.images_per_second
    tell(
        f"Embedded {result.figures.done} images with {MODEL} on {_device(settings)} in "
        f"{time.monotonic() - began:.1f} s, loading it included"
        + (f"; {rate:.0f} images/s once it ran" if rate else "")
        + f". {shop.requests()} requests, {_shard_count(result.shards)}."
    )


def _extract_again(database: Database, settings: Settings, shop: ShopServer, tell: Tell) -> None:
    began, requests, shards = time.monotonic(), shop.requests(), _count_shards(database)
    result = _run_pipeline(database, settings)
    tell(
        f"The same run again: {'nothing to do' if result.run_id is None else 'went on'}, "
        f"{shop.requests() - requests} requests, "
        f"{_count_shards(database) - shards} new shards, {time.monotonic() - began:.1f} s."
    )


def _run_pipeline(database: Database, settings: Settings) -> ModelResult:
    with StopSignals() as stop:
        (result,) = pipeline.extract(database, settings, [MODEL], stop=stop)
    if result.error is not None:
        stopped = RunError(result.error)
        stopped.exit_code = result.exit_code
        raise stopped
    return result


def _show_failures(database: Database, tell: Tell) -> None:
    tell(f"\n{as_table(model_statuses(database), datetime.now(UTC))}\n")
    with database.transaction() as connection:
        failures = list_failures(connection, model=MODEL)
    for head, waits in (
        ("failed for good, the image is at fault", False),
        ("waiting for the next attempt, the server is at fault", True),
    ):
        lines = [_line(failure) for failure in failures if (failure.finished_at is None) is waits]
        tell("\n".join([f"{len(lines)} {head}:", *lines, ""]))


def _line(failure: FailureRecord) -> str:
    due = failure.next_attempt_at
    wait_s = 0.0 if due is None else (due - datetime.now(UTC)).total_seconds()
    name = _file_name(failure.url)
    return (
        f"  {failure.reason:<18}  {_TITLES.get(name, name):<27}  {failure.detail}"
        f"{f'; again in {duration(max(0.0, wait_s))}' if due else ''}"
    )


def _report(database: Database, settings: Settings, tell: Tell) -> None:
    def picture(url: str) -> bytes | None:
        file = settings.home / PICTURES / _file_name(url)
        return file.read_bytes() if file.is_file() else None

    content = showcase.gather(
        database,
        MODEL,
        title=_SHOP,
        pictures=picture,
        storage=settings.storage,
        device=_device(settings),
    )
    write_page(settings.home / REPORT, showcase.render(content))
    pairs = [
        match.picture.category == query.picture.category
        for query in content.queries
        for match in query.matches
    ]
    tell(
        f"Compared {len(content.queries)} products with all others by their vectors alone: "
        f"{sum(pairs)} of the {len(pairs)} nearest neighbours are of the same category."
    )


def _file_name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name


def _device(settings: Settings) -> str:
    from visual_search import embed  # noqa: PLC0415 - imports torch

    device = embed.choose_device(settings.embed.device)
    return f"{usable_cores()} CPU cores" if device.type == "cpu" else device.type


def _count_shards(database: Database) -> int:
    with database.transaction() as connection:
        return len(list_shards(connection, model=MODEL))


def _shard_count(shards: int) -> str:
    return f"{shards} Parquet {'shard' if shards == 1 else 'shards'}"


def _next_steps(settings: Settings, folder: Path) -> str:
    # An empty variable is one that is not set.
    elsewhere = "" if settings.database_url is None else "VSEARCH_DATABASE_URL= "
    here = f"{elsewhere}VSEARCH_HOME={shlex.quote(str(folder))}"
    vsearch = _program()
    return f"""\
Look around in the demo:
  {here} {vsearch} status
  {here} {vsearch} failures list
  {here} {vsearch} shards list --paths

Begin with images of your own:
  {vsearch} catalog import products.csv
  {vsearch} extract --model {MODEL}"""


def _program() -> str:
    """What to type for `vsearch`: its path where its environment is not the active one."""
    path = Path(sys.executable).with_name("vsearch")
    if shutil.which("vsearch") is not None or not path.exists():
        return "vsearch"
    near = path.is_relative_to(Path.cwd())
    return shlex.quote(str(path.relative_to(Path.cwd()) if near else path))
