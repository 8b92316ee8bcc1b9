"""`vsearch catalog` as a user types it: what it prints where, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import text

from tests.database.test_record import Worker
from tests.end_to_end.workplace import Finished, Workplace
from tests.server import ImageServer
from visual_search.database.connection import Database


@pytest.fixture
def place(
    tmp_path: Path, database: Database, database_url: str, image_server: ImageServer
) -> Workplace:
    return Workplace(tmp_path, database, database_url, image_server)


def file(place: Workplace, name: str, *lines: str) -> str:
    path = place.home / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def document(ended: Finished, code: int = 0) -> dict[str, Any]:
    assert ended.code == code, ended
    parsed: dict[str, Any] = json.loads(ended.out)
    assert parsed.pop("schema_version") == 1
    return parsed


def sentence(ended: Finished, code: int = 2) -> str:
    assert ended.code == code, ended
    assert ended.out == ""
    last = ended.err.splitlines()[-1]
    assert last.startswith("vsearch: "), ended
    return last


def test_an_import_says_what_it_did_and_names_bad_rows_on_stderr(place: Workplace) -> None:
    good = [f"http://h.test/{n},{n}" for n in range(3)]
    path = file(place, "p.csv", "image_url,n", *good, *["ftp://h.test,0"] * 25)
    ended = place.vsearch("catalog", "import", path)
    assert ended.code == 0, ended
    assert ended.out.startswith(
        "3 rows: 3 new images, 0 with another URL, 0 unchanged; 3 new products, 0 with other "
        "attributes; 25 bad rows; "
    )
    assert ended.out.endswith(" rows/s\n")
    lines = ended.err.splitlines()
    assert lines[0] == f"{path}:5: the URL does not begin with http:// or https://"
    assert lines[19].startswith(f"{path}:24: ")
    assert lines[20:] == ["… and 5 more bad rows; --json lists up to 1,000"]

    found = document(place.vsearch("catalog", "import", path, "--json"))
    assert found.pop("seconds") > 0
    assert len(found.pop("bad_rows")) == 25
    assert found == {
        "rows": 3,
        "new": 0,
        "updated": 0,
        "unchanged": 3,
        "products_new": 0,
        "products_updated": 0,
        "bad": 25,
    }


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "has no rows; nothing was imported"),
        (["image_url"], "has no rows; nothing was imported"),
        (["image_url", "a", "b"], "could be taken; 2 bad rows"),
    ],
)
def test_an_import_of_nothing_fails(place: Workplace, lines: list[str], said: str) -> None:
    path = file(place, "p.csv", *lines)
    assert said in sentence(place.vsearch("catalog", "import", path), 1)
    found = document(place.vsearch("catalog", "import", path, "--json"), 1)
    assert found["rows"] == 0
    assert found["bad"] == len(found["bad_rows"]) == max(0, len(lines) - 1)


def test_rows_come_through_a_pipe(place: Workplace) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "visual_search", "catalog", "import", "-", "--format", "jsonl"],
        env=place.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        out, _ = process.communicate('{"image_url": "http://h.test/1"}\n', timeout=100)
    assert process.returncode == 0
    assert out.startswith("1 row: 1 new image")


def test_a_query_reads_the_users_own_tables(place: Workplace) -> None:
    with place.database.transaction() as connection:
        connection.execute(
            text("CREATE TABLE public.photos AS SELECT 7 AS id, 'http://h.test/7' AS url")
        )
    sql = "SELECT * FROM photos"
    ended = place.vsearch(
        "catalog", "import", "--query", sql, "--url-column", "url", "--image-key-column", "id"
    )
    assert ended.out.startswith("1 row: 1 new image"), ended
    assert place.rows("SELECT image_key, url FROM images") == [("7", "http://h.test/7")]
    said = sentence(place.vsearch("catalog", "import", "--query", "DELETE FROM photos"))
    assert "must be one SELECT that only reads" in said
    assert "--url-column" in sentence(place.vsearch("catalog", "import", "--query", sql))


def test_one_source_is_given(place: Workplace) -> None:
    path = file(place, "urls.txt", "http://h.test/1")
    for given in ([], [path, "--query", "SELECT 1"]):
        said = sentence(place.vsearch("catalog", "import", *given))
        assert "FILE" in said
        assert "--query" in said
    wrong = place.vsearch("catalog", "import", "--query", "SELECT 1", "--format", "csv")
    assert "--format" in sentence(wrong)
    said = sentence(place.vsearch("catalog", "import", path, "--format", "xls"))
    assert "unknown format 'xls'; one of txt, csv, tsv, jsonl, parquet" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", "gone.csv"],
        ["import", "there.csv"],
        ["import", "--query", "SELECT 1"],
        ["remove", "there.txt"],
    ],
    ids=" ".join,
)
def test_a_mistake_makes_no_catalogue(place: Workplace, arguments: list[str]) -> None:
    for name in ("there.csv", "there.txt"):
        file(place, name, "http://h.test/1")
    home = place.home / "nowhere"
    given = [str(place.home / name) if "." in name else name for name in arguments]
    ended = place.vsearch("catalog", *given, VSEARCH_HOME=str(home), VSEARCH_DATABASE_URL="")
    sentence(ended)
    assert not home.exists()


def test_a_good_file_makes_one(place: Workplace) -> None:
    # Not under pytest's own folder, which only root may enter: the server has another user.
    with TemporaryDirectory(prefix="vsearch-test-") as home:
        here = {"VSEARCH_HOME": home, "VSEARCH_DATABASE_URL": ""}
        path = file(place, "urls.txt", "http://h.test/1", "http://h.test/2")
        assert place.vsearch("catalog", "import", path, **here).code == 0
        ended = place.vsearch(
            "catalog", "import", "--query", "SELECT 'http://h.test/3' AS image_url", **here
        )
        assert ended.code == 0, ended
        assert document(place.vsearch("catalog", "stats", "--json", **here))["images"] == 3


def test_a_removal_says_what_went_and_what_stays(place: Workplace) -> None:
    urls = [f"http://h.test/{n}.jpg" for n in range(3)]
    worker = Worker(place.database, 3)
    worker.commit(3)
    path = file(place, "gone.txt", *urls[:2], "http://h.test/unknown", "nonsense")
    foreseen = place.vsearch("catalog", "remove", path, "--dry-run")
    assert foreseen.code == 0, foreseen
    assert foreseen.out.startswith("would remove 2 images and 0 products; 1 name not in")
    assert "keep 2 vectors of theirs" in foreseen.out
    assert foreseen.err.startswith(f"{path}:4: the URL does not begin with")
    removed = place.vsearch("catalog", "remove", path)
    assert removed.out == foreseen.out.replace("would remove", "removed")
    again = document(place.vsearch("catalog", "remove", path, "--json"))
    assert again == {
        "dry_run": False,
        "rows": 3,
        "images": 0,
        "products": 0,
        "vectors": 0,
        "unknown": 3,
        "bad": 1,
        "bad_rows": [{"line": 4, "reason": "the URL does not begin with http:// or https://"}],
    }


def test_a_removal_by_keys_needs_no_column_of_urls(place: Workplace) -> None:
    rows = file(place, "p.csv", "sku,photo", "a,http://h.test/1", "b,http://h.test/2")
    imported = place.vsearch(
        "catalog", "import", rows, "--url-column", "photo", "--image-key-column", "sku"
    )
    assert imported.code == 0, imported
    path = file(place, "gone.csv", "sku", "a")
    found = document(
        place.vsearch("catalog", "remove", path, "--image-key-column", "sku", "--json")
    )
    assert (found["images"], found["products"]) == (1, 1)
    both = ("--image-key-column", "sku", "--url-column", "photo")
    assert "exclude each other" in sentence(place.vsearch("catalog", "remove", path, *both))


def test_a_removal_of_nothing_is_done_but_of_bad_rows_only_fails(place: Workplace) -> None:
    empty = place.vsearch("catalog", "remove", file(place, "gone.txt"))
    assert (empty.code, empty.out) == (0, "removed 0 images and 0 products\n")
    ended = place.vsearch("catalog", "remove", file(place, "gone.txt", "a", "b"))
    assert ended.code == 1
    assert "could be taken; 2 bad rows" in ended.err


def test_stats_are_shown_and_documented(place: Workplace) -> None:
    path = file(place, "p.csv", "image_url,title", "http://h.test/1,Coat", "http://h.test/2,")
    place.vsearch("catalog", "import", path)
    shown = place.vsearch("catalog", "stats")
    assert shown.code == 0, shown
    assert "products without attributes  1" in shown.out
    assert "h.test       2" in shown.out
    assert "title      50.0%" in shown.out
    found = document(place.vsearch("catalog", "stats", "--json"))
    assert found.pop("last_added_at").endswith("Z")
    assert found == {
        "images": 2,
        "products": 2,
        "host_count": 1,
        "hosts": [{"host": "h.test", "images": 2}],
        "products_without_attributes": 1,
        "products_sampled": 2,
        "attributes": [{"name": "title", "products": 1}],
    }
