"""Exports: whole, once, readable by others, and finished by the next call if one is cut short."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_reader import EmbeddingReader
from sqlalchemy import text

from tests.database.test_catalog_removal import remove
from tests.end_to_end.workplace import TINY, Workplace
from tests.shards import local_path, vectors_of
from visual_search.compaction import GroupOutcome, compact
from visual_search.errors import ExitCode
from visual_search.export import Exported, Format, parts
from visual_search.export import export as export_vectors
from visual_search.export.formats import WRITERS
from visual_search.models import registry
from visual_search.settings import StorageSettings
from visual_search.storage import Folder
from visual_search.storage.folder import PartialFile

SHARDS: dict[str, Any] = {"extract": {"shard_rows": 10}}
IMAGES, SHARDS_THERE = 25, 3


@pytest.fixture
def shop(place: Workplace) -> Workplace:
    """25 images in three shards; the first two of them have products, the first one two."""
    place.publish(IMAGES)
    place.extract(**SHARDS)
    products = {"a": {"name": 'Hüt, "gross"', "size": 3}, "b": {"colour": "red"}}
    with place.database.transaction() as connection:
        connection.execute(
            text("INSERT INTO products (product_id, attributes) VALUES (:key, :attributes)"),
            [{"key": key, "attributes": json.dumps(value)} for key, value in products.items()],
        )
        connection.execute(
            text("""
                INSERT INTO product_images (product_id, image_id)
                SELECT product_id, image_id FROM products
                CROSS JOIN (SELECT image_id FROM images ORDER BY 1 LIMIT 2) AS i
                WHERE product_id = 'a' OR image_id = (SELECT min(image_id) FROM images)
            """)
        )
    return place


def export(place: Workplace, *options: str, code: int = ExitCode.OK) -> dict[str, Any]:
    done = place.vsearch("export", "--model", "tiny", "--json", *options)
    assert done.code == code, done
    return dict(json.loads(done.out)) if code == ExitCode.OK else {"error": done.err}


def export_to(place: Workplace, to: Folder, format_: Format) -> Exported:
    with place.database.transaction() as connection:
        (model,) = registry.registered(connection)
    return export_vectors(
        place.database,
        model,
        to,
        format_=format_,
        storage=StorageSettings(),
        fresh=False,
        tell=lambda _rows: None,
    )


def in_shards(place: Workplace) -> dict[int, list[float]]:
    held: dict[int, list[float]] = {}
    for (uri,) in place.rows("SELECT uri FROM shards WHERE state = 'committed'"):
        ids, vectors = vectors_of(uri)
        held |= dict(zip(ids.tolist(), vectors.tolist(), strict=True))
    return held


def test_the_command_alone_exports_into_home(shop: Workplace) -> None:
    told = export(shop)
    folder = Path(told["to"])
    assert folder.parent == shop.home / "exports"
    assert (told["rows"], told["written"], told["kept"], told["deleted"]) == (IMAGES, 3, 0, 0)
    table = pq.read_table(folder, partitioning=None)
    assert dict(
        zip(table["image_id"].to_pylist(), table["embedding"].to_pylist(), strict=True)
    ) == in_shards(shop)


def test_products_stand_beside_their_images(shop: Workplace, tmp_path: Path) -> None:
    export(shop, "--to", str(tmp_path / "out"))
    found = duckdb.execute(f"""
        SELECT product_ids, attributes FROM read_parquet('{tmp_path}/out/*.parquet')
        ORDER BY image_id LIMIT 3
    """).fetchall()
    assert [ids for ids, _ in found] == [["a", "b"], ["a"], []]
    first, second = map(json.loads, found[0][1])
    assert first == {"name": 'H\u00fct, "gross"', "size": 3}
    assert second == {"colour": "red"}


def test_pandas_and_polars_read_it(shop: Workplace, tmp_path: Path) -> None:
    export(shop, "--to", str(tmp_path / "out"))
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    frames = [pd.read_parquet(part) for part in parts]
    assert sum(len(frame) for frame in frames) == IMAGES
    frame = pl.read_parquet(parts)
    assert frame.shape[0] == IMAGES
    assert {len(vector) for vector in frame["embedding"]} == {TINY["dim"]}


def test_arrays_are_as_embedding_reader_wants_them(shop: Workplace, tmp_path: Path) -> None:
    export(shop, "--format", "npy", "--to", str(tmp_path / "out"))
    reader = EmbeddingReader(
        embeddings_folder=str(tmp_path / "out" / "embeddings"),
        metadata_folder=str(tmp_path / "out" / "metadata"),
        file_format="parquet_npy",
        meta_columns=["image_id", "url"],
    )
    assert (reader.count, reader.dimension) == (IMAGES, TINY["dim"])
    held: dict[int, list[float]] = {}
    for vectors, metadata in reader(batch_size=7, show_progress=False):
        held |= dict(zip(metadata["image_id"].tolist(), vectors.tolist(), strict=True))
    assert held == in_shards(shop)


def test_csv_holds_the_same_numbers(shop: Workplace, tmp_path: Path) -> None:
    export(shop, "--format", "csv", "--to", str(tmp_path / "out"))
    rows: list[dict[str, str]] = []
    for part in (tmp_path / "out").glob("*.csv"):
        with part.open(newline="") as file:
            rows += csv.DictReader(file)
    held = {
        int(row["image_id"]): np.array(json.loads(row["embedding"]), np.float32).tolist()
        for row in rows
    }
    assert held == in_shards(shop)
    (first, *_) = sorted(rows, key=lambda row: int(row["image_id"]))
    assert json.loads(first["product_ids"]) == ["a", "b"]
    assert json.loads(first["attributes"])[0]["name"] == 'H\u00fct, "gross"'


@pytest.mark.parametrize("format_", ["parquet", "npy", "csv"])
def test_the_next_call_adds_what_came_since_and_keeps_the_rest(
    shop: Workplace, tmp_path: Path, format_: str
) -> None:
    options = ("--format", format_, "--to", str(tmp_path / "out"))
    export(shop, *options)
    before = snapshot(tmp_path / "out")
    assert export(shop, *options)["kept"] == 3
    assert snapshot(tmp_path / "out") == before
    shop.publish(5, start=IMAGES)
    shop.extract(**SHARDS)
    told = export(shop, *options)
    assert (told["rows"], told["written"], told["kept"]) == (IMAGES + 5, 1, 3)
    after = snapshot(tmp_path / "out")
    assert before.items() <= after.items()


@pytest.mark.parametrize("format_", ["parquet", "npy", "csv"])
def test_what_was_taken_out_of_the_history_is_taken_out_of_the_export(
    shop: Workplace, tmp_path: Path, format_: str
) -> None:
    options = ("--format", format_, "--to", str(tmp_path / "out"))
    export(shop, *options)
    before = snapshot(tmp_path / "out")
    urls = tmp_path / "urls.txt"
    ((url,),) = shop.rows("SELECT url FROM images ORDER BY image_id LIMIT 1")
    urls.write_text(url)
    assert shop.vsearch("catalog", "remove", str(urls)).code == ExitCode.OK
    told = export(shop, *options)
    assert (told["rows"], told["written"], told["kept"], told["deleted"]) == (IMAGES - 1, 1, 2, 1)
    assert len(snapshot(tmp_path / "out")) == len(before)


def test_attributes_of_today_come_with_fresh(shop: Workplace, tmp_path: Path) -> None:
    to = ("--to", str(tmp_path / "out"))
    export(shop, *to)
    shop.rows("UPDATE products SET attributes = '{}'")
    assert export(shop, *to)["written"] == 0
    assert export(shop, *to, "--fresh")["written"] == 3
    table = pq.read_table(tmp_path / "out", partitioning=None)
    assert {value for each in table["attributes"].to_pylist() for value in each} == {"{}"}


@pytest.mark.parametrize(
    ("format_", "nth"),
    [("parquet", 1), ("parquet", 2), ("csv", 4), *(("npy", nth) for nth in range(2, 8))],
)
def test_an_export_that_is_cut_short_is_finished_by_the_next(
    shop: Workplace, tmp_path: Path, format_: Format, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = Folder(tmp_path / "out")
    left = [nth]
    publish = PartialFile.publish

    def cut(file: PartialFile) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        publish(file)

    with monkeypatch.context() as patch:
        patch.setattr(PartialFile, "publish", cut)
        with pytest.raises(KeyboardInterrupt):
            export_to(shop, to, format_)
    assert not list(tmp_path.rglob("*.partial"))
    told = export_to(shop, to, format_)
    assert told.rows == IMAGES
    whole = snapshot(tmp_path / "out")
    assert len(whole) == 1 + SHARDS_THERE * len(WRITERS[format_])
    export_to(shop, Folder(tmp_path / "other"), format_)
    assert {name: body for name, (_, body) in whole.items()} == {
        name: body for name, (_, body) in snapshot(tmp_path / "other").items()
    }


def test_a_place_that_holds_something_else_is_refused(shop: Workplace, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep this")
    told = export(shop, "--to", str(tmp_path), code=ExitCode.USAGE)
    assert "is not empty and no export" in told["error"]
    export(shop, "--to", str(tmp_path / "out"))
    told = export(shop, "--to", str(tmp_path / "out"), "--format", "csv", code=ExitCode.USAGE)
    assert "holds another export" in told["error"]
    told = export(shop, "--format", "arrow", code=ExitCode.USAGE)
    assert "unknown format 'arrow'; one of parquet, npy, csv" in told["error"]


def test_a_damaged_shard_is_named(shop: Workplace, tmp_path: Path) -> None:
    ((uri,),) = shop.rows("SELECT uri FROM shards ORDER BY created_at LIMIT 1")
    os.truncate(local_path(uri), 100)
    told = export(shop, "--to", str(tmp_path / "out"), code=ExitCode.TEMPORARY)
    assert f"cannot read the shard {local_path(uri)}" in told["error"]
    assert "vsearch shards verify" in told["error"]


# Shards that are merged between two exports, or in the midst of one.


@pytest.mark.parametrize("format_", ["parquet", "npy"])
def test_what_was_merged_since_is_neither_written_again_nor_lost(
    shop: Workplace, tmp_path: Path, format_: Format
) -> None:
    to = Folder(tmp_path / "out")
    export_to(shop, to, format_)
    before = snapshot(to.folder)
    merge_all(shop)
    assert export_to(shop, to, format_) == Exported(rows=IMAGES, written=0, kept=3, deleted=0)
    assert snapshot(to.folder) == before
    shop.publish(5, start=IMAGES)
    shop.extract(**SHARDS)
    merge_all(shop)
    # The new shard has rows of two sources: one whose parts are there, one without.
    assert export_to(shop, to, format_) == Exported(rows=IMAGES + 5, written=1, kept=0, deleted=3)
    assert export_to(shop, to, format_).kept == 1


def test_a_merged_shard_that_lost_a_row_is_written_anew(shop: Workplace, tmp_path: Path) -> None:
    to = Folder(tmp_path / "out")
    export_to(shop, to, "parquet")
    merge_all(shop)
    remove_first(shop)
    told = export_to(shop, to, "parquet")
    assert told == Exported(rows=IMAGES - 1, written=1, kept=0, deleted=3)


def test_as_many_rows_are_not_taken_for_the_same(shop: Workplace, tmp_path: Path) -> None:
    """One image left a shard, another shard of one image came, and both were merged."""
    to = Folder(tmp_path / "out")
    export_to(shop, to, "parquet")
    remove_first(shop)
    (url,) = shop.publish(1, start=IMAGES)
    shop.extract(**SHARDS)
    merge_all(shop)
    told = export_to(shop, to, "parquet")
    assert (told.rows, told.kept) == (IMAGES, 0)
    table = pq.read_table(tmp_path / "out", partitioning=None)
    assert url in table["url"].to_pylist()
    assert ids_in(table) == in_catalogue(shop)


def test_a_merge_in_the_midst_of_an_export_loses_nothing(
    shop: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, read_part = Folder(tmp_path / "out"), parts.read_part

    def read(*given: Any) -> Any:
        if len(shop.rows("SELECT FROM shards WHERE state = 'committed'")) > 1:
            merge_all(shop)
        return read_part(*given)

    monkeypatch.setattr("visual_search.export.read_part", read)
    told = export_to(shop, to, "parquet")
    assert (told.rows, told.written) == (IMAGES, SHARDS_THERE)
    table = pq.read_table(tmp_path / "out", partitioning=None)
    assert ids_in(table) == in_catalogue(shop)
    assert dict(
        zip(table["image_id"].to_pylist(), table["embedding"].to_pylist(), strict=True)
    ) == in_shards(shop)
    assert export_to(shop, to, "parquet").kept == SHARDS_THERE


def merge_all(place: Workplace) -> None:
    with place.database.transaction() as connection:
        models = registry.registered(connection)
    settings = place.settings()
    (merged,) = compact(
        place.database,
        Folder(Path(settings.output_uri)),
        models,
        below=500,
        max_rows=1_000,
        hold_s=60,
        settings=settings.storage,
        dry_run=False,
        tell=lambda _rows: None,
    )
    assert merged.outcome is GroupOutcome.MERGED


def remove_first(place: Workplace) -> None:
    ((url,),) = place.rows("SELECT url FROM images ORDER BY image_id LIMIT 1")
    assert remove(place.database, url).images == 1


def ids_in(table: pa.Table) -> list[int]:
    return sorted(table["image_id"].to_pylist())


def in_catalogue(place: Workplace) -> list[int]:
    return [image_id for (image_id,) in place.rows("SELECT image_id FROM images ORDER BY 1")]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Each file with its time and bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }
