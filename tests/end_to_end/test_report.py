"""`vsearch report` as a user types it."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.workplace import TINY, Workplace
from tests.page import Page
from visual_search.hosts import slowest_hosts


@pytest.fixture
def shop(place: Workplace) -> Workplace:
    """Five images for two models, and one that is not there."""
    place.models["other"] = TINY | {"revision": "2"}
    place.server.serve("/missing.jpg", b"", status=404)
    place.publish(5)
    place.rows(
        """
        INSERT INTO images (image_key, key_hash, url, host)
        VALUES ('lost', decode(repeat('00', 16), 'hex'), :url, 'lost.test')
        """,
        url=place.server.url("/missing.jpg?signature=secret"),
    )
    place.rows("UPDATE catalogue SET images = 6")
    place.extract("tiny", "other")
    return place


def test_a_report_tells_of_runs_failures_hosts_and_shards(shop: Workplace) -> None:
    ended = shop.vsearch("report")
    assert ended.code == 0, ended
    path = shop.home / "overview.html"
    assert ended.out == f"{path}\n"
    page = Page(path.read_text())
    assert "2 models, 83.3 % done" in page.text
    assert "The server does not have it (404)" in page.text
    assert "lost.test 2 0 2 not_found" in page.text
    assert f"127.0.0.1:{shop.server.port}" in page.text
    assert "Shards by rows" in page.text
    assert "secret" not in path.read_text()
    # Once for both models: that is how often it was asked.
    with shop.database.transaction() as connection:
        ((host, traffic),) = slowest_hosts(connection, 10)
    assert host == f"127.0.0.1:{shop.server.port}"
    assert (traffic.requests, traffic.failed) == (6, 1)
    assert traffic.bytes > 5 * 500
    assert 0 < traffic.seconds < 60


def test_a_report_may_be_of_some_models_and_elsewhere(shop: Workplace) -> None:
    path = shop.home / "pages" / "tiny.html"
    ended = shop.vsearch("report", "--model", "tiny", "--output", str(path), "--json")
    assert ended.code == 0, ended
    assert json.loads(ended.out) == {
        "schema_version": 1,
        "path": str(path),
        "bytes": path.stat().st_size,
    }
    text = Page(path.read_text()).text
    assert "5 of 6 images have a vector" in text
    assert "tiny-" in text
    assert "other-" not in text
    # Whole at every moment, and nothing beside it.
    assert [file.name for file in path.parent.iterdir()] == ["tiny.html"]


def test_an_older_report_is_replaced(shop: Workplace) -> None:
    path = shop.home / "overview.html"
    path.write_text("old")
    assert shop.vsearch("report").code == 0
    assert path.read_text().startswith("<!doctype html>")


def test_a_catalogue_without_runs_has_a_report(place: Workplace) -> None:
    place.publish(2)
    assert place.vsearch("report").code == 0
    assert "No model has run" in Page((place.home / "overview.html").read_text()).text


def test_what_cannot_be_written_is_one_sentence(place: Workplace) -> None:
    place.home.joinpath("file").touch()
    for output, code, said in (
        (place.home, 2, f"{place.home} is a folder; name a file in it, such as"),
        (place.home / "file" / "x.html", 75, "cannot write the report"),
        (place.home / ("x" * 300), 75, "File name too long"),
        (Path("/"), 2, "/ is a folder"),
    ):
        ended = place.vsearch("report", "--output", str(output))
        assert ended.code == code, ended
        (line,) = ended.err.splitlines()
        assert line.startswith("vsearch: ")
        assert said in line
        assert ended.out == ""
    assert {file.name for file in place.home.iterdir()} == {"file", "vsearch.toml"}


def test_an_unknown_model_is_one_sentence(place: Workplace) -> None:
    ended = place.vsearch("report", "--model", "nobody")
    assert ended.code == 2
    assert "model 'nobody' has not run on this catalogue" in ended.err
    assert not (place.home / "overview.html").exists()
