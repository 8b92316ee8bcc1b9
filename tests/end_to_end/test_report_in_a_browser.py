"""Reports as Chromium shows them: light and dark, on a telephone and on a screen."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests import browser as machine
from tests import overviews
from tests.unit.test_report_showcase import content as showcase_content
from visual_search.report import overview, showcase
from visual_search.report.page.document import write_page

NARROW_PX, WIDE_PX = 360, 1280
SECTIONS = [
    "Models",
    "Progress",
    "Throughput",
    "Where the time went",
    "Failures by reason",
    "Failures by host",
    "Slowest hosts",
    "Shard sizes",
]
PAGES: dict[str, Callable[[], str]] = {
    "overview": lambda: overview.render(overviews.overview()),
    "nothing": lambda: overview.render(overviews.nothing()),
    "one run": lambda: overview.render(overviews.one_run()),
    "crowd": lambda: overview.render(overviews.crowd(70)),
    "showcase": lambda: showcase.render(showcase_content()),
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = machine.find()
    if program is None:
        pytest.skip(f"no browser; {machine.HOW}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            # Chromium's sandbox refuses to run for root, as whom CI runs; the pages are ours.
            args=["--no-sandbox"] if os.geteuid() == 0 else [],
        )
        yield browser
        browser.close()


class Shown:
    """A page in a browser, and what it asked for and complained of meanwhile."""

    def __init__(self, page: Page, file: Path) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text) if message.type == "error" else None
            ),
        )
        page.goto(file.as_uri(), wait_until="load")

    def measure(self, selector: str, side: str) -> list[float]:
        """Of each element."""
        return [
            float(length)
            for length in self.page.eval_on_selector_all(
                selector,
                "(all, side) => all.map(each => each.getBoundingClientRect()[side])",
                side,
            )
        ]


@pytest.fixture
def show(chromium: Browser, tmp_path: Path) -> Iterator[Callable[..., Shown]]:
    contexts = []

    def shown(html: str, *, width_px: int = WIDE_PX, dark: bool = False) -> Shown:
        file = tmp_path / "report.html"
        write_page(file, html)
        context = chromium.new_context(
            viewport={"width": width_px, "height": 800},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        return Shown(context.new_page(), file)

    yield shown
    for context in contexts:
        context.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width_px", [NARROW_PX, WIDE_PX])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_renders_quietly_and_within_its_width(
    show: Callable[..., Shown], name: str, width_px: int, dark: bool
) -> None:
    shown = show(PAGES[name](), width_px=width_px, dark=dark)
    assert shown.complaints == []
    (only,) = [url for url in shown.requests if not url.startswith("data:")]
    assert only == shown.page.url
    assert shown.page.locator("h1").is_visible()
    assert shown.page.evaluate("document.documentElement.scrollWidth") == width_px
    for side in ("width", "height"):
        assert all(length > 0 for length in shown.measure("main svg", side))
    # Nothing hangs over either, where it could not be reached.
    assert max(shown.measure("main *", "right"), default=0) <= width_px
    background = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(",")))
    assert (brightness < 3 * 64) is dark


@pytest.mark.parametrize("width_px", [NARROW_PX, WIDE_PX])
def test_all_that_an_overview_has_is_on_the_page(show: Callable[..., Shown], width_px: int) -> None:
    page = show(PAGES["overview"](), width_px=width_px).page
    assert page.locator("h2").all_inner_texts() == SECTIONS
    figures = page.locator("figure > svg")
    assert figures.count() == 7
    for figure in figures.all():
        assert figure.is_visible()
        box = figure.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 100


def test_a_screen_reader_is_told_what_a_plot_shows(show: Callable[..., Shown]) -> None:
    page = show(PAGES["overview"]()).page
    plot = page.get_by_role("img", name="Images with a vector, over time (UTC)")
    assert plot.count() == 1
    for figure in page.locator("figure > svg").all():
        assert figure.locator("title").first.text_content()
        assert len(figure.locator("desc").text_content() or "") > 40


def test_labels_of_plots_do_not_lie_on_each_other(show: Callable[..., Shown]) -> None:
    for name in ("overview", "one run", "crowd"):
        page = show(PAGES[name](), width_px=NARROW_PX).page
        overlapping = page.evaluate("""() => {
            const found = [];
            for (const plot of document.querySelectorAll('.plot > svg')) {
                const labels = [...plot.querySelectorAll('text')]
                    .map(label => [label.textContent, label.getBoundingClientRect()])
                    .filter(([, box]) => box.width > 0);
                for (const [n, [text, a]] of labels.entries())
                    for (const [other, b] of labels.slice(n + 1))
                        if (a.left < b.right && b.left < a.right &&
                            a.top + 2 < b.bottom - 2 && b.top + 2 < a.bottom - 2)
                            found.push([text, other]);
            }
            return found;
        }""")
        assert overlapping == [], name


def test_hostile_names_run_nothing(show: Callable[..., Shown]) -> None:
    """Were one of them markup, the page's own policy would complain of it."""
    attack = "</title></svg><script>document.title='taken'</script><img src=x onerror=alert(1)>"
    shown = show(overview.render(overviews.hostile(attack)))
    assert shown.complaints == []
    assert shown.page.locator("script, img").count() == 0
    assert "taken" not in shown.page.title().split("·")[-1]


def test_a_page_may_not_load_anything(show: Callable[..., Shown]) -> None:
    """The policy holds even if something slipped in."""
    html = PAGES["nothing"]().replace(
        "<main>",
        '<main><img src="http://127.0.0.1:9/pixel.png"><script>document.title="x"</script>',
    )
    shown = show(html)
    assert len(shown.complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in shown.complaints)
