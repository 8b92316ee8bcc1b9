"""The overview's page: what it says, and that all text in it is only text."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.overviews import (
    NO_HOSTS,
    NOW,
    crowd,
    done,
    facts,
    group,
    growth,
    hostile,
    nothing,
    one_run,
    overview,
    progress,
    run,
    status,
)
from tests.page import Page
from visual_search.hosts import Traffic
from visual_search.report.overview import render
from visual_search.report.overview.content import FailingHost, FailingHosts, Overview
from visual_search.report.overview.growth import at_times
from visual_search.report.page.wording import elapsed, headline, short_number, shortened
from visual_search.report.plots.scale import number_ticks, time_ticks


def said(content: Overview) -> str:
    return Page(render(content)).text


def test_the_page_says_what_there_is_to_say() -> None:
    text = said(overview())
    assert "2 models, 94 % done" in text
    assert "Vectors 1,880,000 94 % of 2,000,000" in text
    assert "Still to do 80,000 about 10 min 37 s" in text
    assert "Workers 2 125.5 images per second" in text
    assert "On disk 4.8 GB 206 Parquet shards" in text
    assert "latest run, of resnet18 , completed 10 min 0 s ago" in text
    assert "The server does not have it (404)" in text
    assert "cdn0.shop-number-0.test 9,000 6,000 9,000 not_found, 6,000 timeout" in text
    assert "They are of 40 hosts; here are the 12 with most of them." in text
    assert "img0.shop-number-0.test:8443 3.11 s 90,000 0 % 4.0 GB 14.3 kB/s" in text


def test_what_is_drawn_also_stands_in_tables() -> None:
    text = said(
        overview(
            runs=(run(images_per_second=71.25), run(hours_ago=5, images_per_second=None)),
            progress=progress(growth("resnet18", 123_456)),
        )
    )
    assert "2026-11-26 12:00 123,456" in text
    assert "40,000 1,000 71.2" in text
    assert "40,000 1,000 –" in text
    assert "10,000 – 10,999 178" in text
    assert "20.0 MB – 25.0 MB 170" in text


def test_a_catalogue_without_runs_has_a_page_that_says_what_to_do() -> None:
    page = Page(render(nothing(images=7)))
    assert "No model has run on this catalogue yet" in page.text
    assert "It has 7 images. vsearch extract --model NAME begins" in page.text
    assert "section" not in page.tags


def test_one_run_has_a_page() -> None:
    text = said(one_run())
    assert "40 of 40 images have a vector" in text
    assert "100 % of 40" in text
    # Seconds count in a run of a minute.
    assert "2026-11-26 11:59:45 40" in text
    assert "Failures" not in text


def test_models_beyond_the_drawn_ones_are_only_in_the_table() -> None:
    names = [f"model{n}" for n in range(9)]
    page = Page(
        render(
            overview(
                models=[facts(status(name)) for name in names],
                progress=progress(*(growth(name, 10) for name in names[:6])),
                runs=[run(name) for name in names],
            )
        )
    )
    assert "The 6 models with the latest work are drawn" in page.text
    assert "other models" in page.text
    assert all(name in page.text for name in names)
    lines = [value for tag, name, value in page.attributes if (tag, name) == ("path", "class")]
    assert sorted(lines) == [f"line s{n}" for n in range(6)]


def test_hostile_text_stays_text() -> None:
    attack = "</title></svg><script>alert(1)</script>\"'><img src=x onerror=alert(2)>$style${main}"
    page, plain = Page(render(hostile(attack))), Page(render(hostile("plain")))
    assert page.tags == plain.tags
    assert [(tag, name) for tag, name, _ in page.attributes] == [
        (tag, name) for tag, name, _ in plain.attributes
    ]
    assert page.text.count("<script>alert(1)</script>") > 15
    assert "$style${main}" in page.text


def test_no_control_character_of_a_host_reaches_the_page() -> None:
    host = "evil\u202egpj.test\x07"
    known = FailingHosts(
        hosts=[FailingHost(host=host, failed=1, waiting=0, by_reason={"dns": 1})],
        host_count=1,
        looked_at=1,
    )
    html = render(overview(failing_hosts=known, slowest_hosts=[(host, Traffic(requests=1))]))
    assert "\u202e" not in html
    assert "\x07" not in html


def test_what_stopped_a_run_is_told_without_secrets() -> None:
    message = "cannot reach https://me:hunter2@store.test/bucket?signature=hunter2"
    text = said(overview(runs=(run(outcome="failed", message=message),)))
    assert "cannot reach https://store.test/bucket?…" in text
    assert "hunter2" not in text


def test_the_page_loads_nothing_and_may_load_nothing() -> None:
    page = Page(render(overview()))
    links = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert links == ["data:,"]
    assert not {"script", "iframe", "object", "embed", "base", "form", "image", "use"} & set(
        page.tags
    )
    policy = next(v for _, _, v in page.attributes if v.startswith("default-src"))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in policy


def test_every_id_is_there_once_and_every_plot_has_its_words() -> None:
    page = Page(render(overview()))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) == 14
    named = [v for _, name, v in page.attributes if name == "aria-labelledby"]
    assert sorted(ids) == sorted(name for both in named for name in both.split())


def test_failures_of_which_only_some_were_looked_at_are_said_to_be() -> None:
    text = said(overview(failures=(group("dns", 5_000_000),)))
    assert "Of 5,000,000 failures 40,000 were looked at, some of each model and reason." in text


def test_failures_whose_images_are_gone_meanwhile_have_no_hosts() -> None:
    text = said(overview(failures=(group("dns", 2, example=None),), failing_hosts=NO_HOSTS))
    assert "They are of 0 hosts" in text


def test_a_model_at_100_percent_has_nothing_left_to_do() -> None:
    text = said(overview(models=(facts(done("resnet18")),), failures=()))
    assert "1,000,000 of 1,000,000 images have a vector" in text
    assert "Still to do 0 all is done" in text
    assert "Failed for good 0 0 % of 1,000,000" in text
    assert "Failures by" not in text


def test_a_run_that_still_lives_or_died_has_no_end() -> None:
    living = run(finished_at=None, outcome=None)
    text = said(
        overview(
            runs=(living,),
            models=(facts(replace(status(), last_run=living, workers=0, eta_seconds=None)),),
        )
    )
    assert "last gave a sign of life 1 h 10 min ago" in text
    assert "Still to do 80,000 due now" in text
    assert text.count("no end recorded") == 2


def test_values_between_points_are_those_of_the_last_one() -> None:
    times = [NOW + timedelta(hours=n) for n in range(5)]
    assert at_times([(times[1], 10), (times[3], 30)], times) == [0, 10, 10, 30, 30]


@pytest.mark.parametrize(
    ("top", "whole", "ticks"),
    [
        (0, False, [0, 0.25, 0.5, 0.75, 1]),
        (0, True, [0, 1]),
        (3, True, [0, 1, 2, 3]),
        (7, True, [0, 2, 4, 6, 8]),
        (0.3, False, [0, 0.1, 0.2, 0.3]),
        (100, False, [0, 25, 50, 75, 100]),
        (1_000_001, True, [0, 500_000, 1_000_000, 1_500_000]),
    ],
)
def test_axes_have_round_numbers(top: float, whole: bool, ticks: list[float]) -> None:
    assert number_ticks(top, whole=whole) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.25, "0.25"), (999, "999"), (12_500, "12.5k"), (2_500_000, "2.5M"), (3e9, "3G")],
)
def test_numbers_of_axes_are_short(value: float, shown: str) -> None:
    assert short_number(value) == shown


def test_numbers_in_large_letters_fit() -> None:
    assert [headline(n) for n in (99_999_999, 330_412_345)] == ["99,999,999", "330.4M"]


@pytest.mark.parametrize(
    ("span", "first", "at_least"),
    [
        (timedelta(seconds=5), "10:30:00", 6),
        (timedelta(minutes=40), "10:30", 5),
        (timedelta(hours=10), "12:00", 5),
        (timedelta(hours=20), "26 Nov 12:00", 3),
        (timedelta(days=9), "27 Nov", 4),
        (timedelta(days=80), "3 Dec", 5),
        (timedelta(days=100), "Dec 2026", 3),
        (timedelta(days=400), "Jan 2027", 3),
        (timedelta(days=9000), "Jan 2030", 3),
    ],
)
def test_times_of_axes_are_round_and_as_short_as_can_be(
    span: timedelta, first: str, at_least: int
) -> None:
    begins = datetime(2026, 11, 26, 10, 30, tzinfo=UTC)
    ticks = time_ticks(begins, begins + span)
    assert ticks[0].label == first
    assert at_least <= len(ticks) <= 7
    assert [tick.at for tick in ticks] == sorted(tick.at for tick in ticks)
    assert all(0 <= tick.at <= 1 for tick in ticks)
    assert (
        1 <= sum(not tick.minor for tick in ticks) <= (2 if ":" in first and "Nov" in first else 3)
    )


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0841, "84 ms"), (2.514, "2.51 s"), (31.04, "31.0 s")]
)
def test_short_times_have_three_digits(seconds: float, shown: str) -> None:
    assert elapsed(seconds) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("short", "short"), ("0123456789", "012…89"[:6]), ("123456", "123456")]
)
def test_long_names_lose_their_middle(text: str, shown: str) -> None:
    assert shortened(text, 6) == shown


def test_four_hundred_models_have_a_page() -> None:
    page = Page(render(crowd(400)))
    assert "400 models, 88 % done" in page.text
    assert all(f"model_{n:03}_of_the_night" in page.text for n in range(400))
    assert page.tags.count("path") == 6


def test_a_model_has_the_same_colour_in_every_plot() -> None:
    """In legend, line and columns; legends name them in the order of their colours."""
    page = Page(render(overview(runs=(run("efficientnet_lite0"), run("resnet18"), run("third")))))
    paints = [(tag, v) for tag, name, v in page.attributes if name == "class"]
    assert [v for tag, v in paints if tag == "line" and v[0] == "s"] == ["s0", "s1"] * 2
    assert [v for tag, v in paints if tag == "path"] == ["line s1", "line s0"]
    assert [v for tag, v in paints if tag == "rect"][:3] == ["other", "s0", "s1"]
