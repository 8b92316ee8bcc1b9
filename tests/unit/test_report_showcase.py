"""The report's page: complete in itself, and all text in it is only text."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.page import Page
from tests.pictures import jpeg_bytes
from visual_search.errors import FailureReason, StorageError
from visual_search.report.failure_groups import FailureGroup
from visual_search.report.page import reasons
from visual_search.report.page.document import write_page
from visual_search.report.page.wording import percent, size
from visual_search.report.showcase import render
from visual_search.report.showcase.content import Facet, Match, Picture, Query, Showcase
from visual_search.runs import STAGES, RunRecord
from visual_search.status import ModelStatus

NOW = datetime(2026, 11, 5, 12, 0, tzinfo=UTC)


def run(**changed: Any) -> RunRecord:
    values: dict[str, Any] = {
        "run_id": uuid4(),
        "model": "tiny",
        "model_id": "tiny-1",
        "host": "h",
        "pid": 1,
        "started_at": NOW,
        "heartbeat_at": NOW,
        "finished_at": NOW + timedelta(seconds=12.34),
        "outcome": "completed",
        "message": None,
        "claimed": 10,
        "done": 8,
        "failed": 2,
        "images_per_second": 20.0,
        "core_seconds_per_stage": dict(zip(STAGES, (1.0, 2.0, 6.0, 0.5, 0.5), strict=True)),
    }
    return RunRecord(**(values | changed))


def status(**changed: Any) -> ModelStatus:
    values: dict[str, Any] = {
        "model": "tiny",
        "model_id": "tiny-1",
        "total": 10,
        "done": 8,
        "pending": 1,
        "waiting": 1,
        "claimed": 0,
        "failed": 1,
        "failed_by_reason": {"not_found": 1},
        "waiting_by_reason": {"timeout": 1},
        "images_per_second": None,
        "eta_seconds": None,
        "last_success_at": None,
        "workers": 0,
        "last_run": run(),
    }
    return ModelStatus(**(values | changed))


def picture(title: str = "Hat", **changed: Any) -> Picture:
    values: dict[str, Any] = {"price": "9.95 EUR", "category": "hat", "thumbnail": jpeg_bytes(8, 8)}
    return Picture(title=title, **(values | changed))


def query(*matches: Picture, of: Picture) -> Query:
    return Query(
        picture=of, matches=tuple(Match(picture=match, similarity=0.5) for match in matches)
    )


def failure(**changed: Any) -> FailureGroup:
    values: dict[str, Any] = {
        "reason": "not_found",
        "images": 1,
        "waiting": False,
        "next_attempt_at": None,
        "example": "http://h.test/1.jpg",
        "detail": "answered 404",
    }
    return FailureGroup(**(values | changed))


def content(**changed: Any) -> Showcase:
    values: dict[str, Any] = {
        "title": "My shop",
        "made_at": NOW,
        "status": status(),
        "dim": 1280,
        "precision": "fp32",
        "device": "2 CPU cores",
        "shards": 1,
        "bytes": 830_900,
        "failures": (failure(),),
        "queries": (query(picture("Cap"), of=picture()),),
        "compared": 8,
        "facets": (Facet(attribute="brand", products=(("Fennel", 3), ("Nordwerk", 1))),),
    }
    return Showcase(**(values | changed))


def test_the_page_says_what_there_is_to_say() -> None:
    text = Page(render(content())).text
    assert "8 of 10 images can be searched by their looks" in text
    assert "vectors of 1,280 numbers in 12.3 s" in text
    assert "1 failed for good, each with its reason; 1 will be tried again." in text
    assert "Speed 20.0 images per second" in text
    assert "On disk 830.9 kB 1 Parquet shard" in text
    assert "2 CPU cores · fp32" in text
    assert "5 November 2026, 12:00 UTC, completed" in text
    assert "Embed the model itself 6.00 s 60 %" in text
    assert "1,000.0 core-milliseconds for each of 10 images" in text
    assert "Fennel 3 Nordwerk 1" in text
    assert "1 of the 1 neighbours are of their query’s category." in text


def test_failed_and_waiting_images_are_told_apart() -> None:
    due = NOW + timedelta(hours=2)
    groups = (
        failure(images=3),
        failure(reason="timeout", waiting=True, detail=None, next_attempt_at=due),
        failure(reason="server_error", waiting=True, next_attempt_at=due),
    )
    text = Page(render(content(failures=groups))).text
    final, waiting = text.index("Failed for good: 3"), text.index("Waiting: 2")
    assert final < text.index("not_found") < waiting < text.index("timeout", waiting)
    assert "The server had a problem" in text[waiting:]
    assert "answered 404 · next try 5 November 2026, 14:00 UTC" in text[waiting:]


def test_the_page_loads_nothing_and_may_load_nothing() -> None:
    page = Page(render(content()))
    links = [
        value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")
    ]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    policy = next(value for tag, name, value in page.attributes if value.startswith("default-src"))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in policy
    css = next(text for text in page.texts if ":root" in text)
    assert "url(" not in css
    assert "@import" not in css


def test_hostile_text_stays_text() -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>$style${main}"
    hostile = picture(attack, price=attack, category=attack)
    page = Page(
        render(
            content(
                title=attack,
                device=attack,
                precision=attack,
                status=status(model=attack, model_id=attack, last_run=run(outcome=attack)),
                failures=(failure(reason=attack, example=attack, detail=attack),),
                queries=(query(hostile, of=hostile),),
                facets=(Facet(attribute=attack, products=((attack, 1),)),),
            )
        )
    )
    plain = Page(render(content()))
    assert set(page.tags) == set(plain.tags)
    assert {(tag, name) for tag, name, _ in page.attributes} == {
        (tag, name) for tag, name, _ in plain.attributes
    }
    # Every one of them is still there to be read.
    assert page.text.count("<script>alert(1)</script>") >= 13
    assert "$style${main}" in page.text


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (0, 0, "0 %"),
        (0, 10, "0 %"),
        (10, 10, "100 %"),
        (999_999, 1_000_000, "99.9 %"),
        (1, 1_000_000, "< 0.1 %"),
        (1, 1000, "0.1 %"),
        (1, 20, "5 %"),
        (288, 299, "96.3 %"),
    ],
)
def test_a_share_is_never_rounded_to_all_or_nothing(part: int, whole: int, shown: str) -> None:
    assert percent(part, whole) == shown


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_960, "1.0 MB"),
        (2_500_000_000, "2.5 GB"),
        (12_345_000_000_000_000, "12,345.0 TB"),
    ],
)
def test_sizes_are_shown_in_the_unit_that_fits(amount: int, shown: str) -> None:
    assert size(amount) == shown


def test_a_catalogue_without_anything_has_a_page() -> None:
    empty = status(total=0, done=0, pending=0, waiting=0, failed=0, last_run=None)
    page = Page(
        render(content(status=empty, shards=0, bytes=0, failures=(), queries=(), facets=()))
    )
    assert "0 of 0 images" in page.text
    assert "On disk 0 bytes 0 Parquet shards" in page.text
    assert "section" not in page.tags


def test_a_run_in_which_everything_failed_has_no_contact_sheet() -> None:
    failed = status(done=0, failed=10, pending=0, waiting=0, last_run=run(done=0, failed=10))
    text = Page(
        render(content(status=failed, queries=(), shards=0, failures=(failure(images=10),)))
    ).text
    assert "0 of 10 images" in text
    assert "What looks alike" not in text
    assert "Failed for good: 10" in text


def test_a_run_that_still_lives_has_no_end() -> None:
    living = status(pending=5, last_run=run(finished_at=None, outcome=None))
    text = Page(render(content(status=living))).text
    assert "no end recorded" in text
    assert "4 still to do" in text
    assert "numbers in" not in text


def test_a_picture_that_could_not_be_had_is_said_to_be_missing() -> None:
    page = Page(render(content(queries=(query(picture(), of=picture(thumbnail=None)),))))
    assert page.tags.count("img") == 1
    assert "picture not available Hat" in page.text


def test_every_failure_reason_has_words() -> None:
    for reason in FailureReason:
        assert reasons.words(reason.value) != reason.value
    assert reasons.words("of_a_later_version") == "of_a_later_version"


def test_a_report_is_written_whole_into_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_page(path, render(content()))
    assert path.read_text(encoding="utf-8") == render(content())
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_report_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write the report"):
        write_page(tmp_path / "file" / "report.html", "")
