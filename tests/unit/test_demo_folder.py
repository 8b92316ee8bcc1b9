"""The demo's folder: emptied of what a demo left, and of nothing else."""

from pathlib import Path

import pytest

from visual_search.demo.folder import emptied_folder, writing
from visual_search.errors import StorageError, UsageError


def used(folder: Path) -> None:
    with emptied_folder(folder):
        for name in ("pictures", "vectors", "weights"):
            (folder / name / "deep").mkdir(parents=True)
            (folder / name / "deep" / "file").touch()
        (folder / "products.jsonl").touch()
        (folder / "report.html").touch()


def test_what_a_demo_left_is_gone_when_the_next_one_begins(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "demo"
    used(folder)
    assert (folder / "report.html").exists()
    with emptied_folder(folder):
        (marker,) = folder.iterdir()
        assert "vsearch demo" in marker.read_text()


def test_what_no_demo_made_stays(tmp_path: Path) -> None:
    used(tmp_path / "demo")
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    with emptied_folder(tmp_path / "demo"):
        assert (tmp_path / "demo" / "notes.txt").read_text() == "mine"


def test_a_folder_of_somebody_elses_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    (folder / "vectors").mkdir(parents=True)
    (folder / "vectors" / "precious").touch()
    with (
        pytest.raises(UsageError, match="is not empty, and no demo made it"),
        emptied_folder(folder),
    ):
        pytest.fail("it was taken")
    assert [path.name for path in folder.rglob("*")] == ["vectors", "precious"]


def test_only_one_demo_at_a_time_has_the_folder(tmp_path: Path) -> None:
    with emptied_folder(tmp_path / "demo"):
        (tmp_path / "demo" / "report.html").touch()
        with (
            pytest.raises(UsageError, match="another demo is running"),
            emptied_folder(tmp_path / "demo"),
        ):
            pytest.fail("it was taken twice")
        assert (tmp_path / "demo" / "report.html").exists()
    with emptied_folder(tmp_path / "demo"):
        assert not (tmp_path / "demo" / "report.html").exists()


def test_a_home_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match="choose another VSEARCH_HOME"),
        emptied_folder(tmp_path / "file" / "demo"),
    ):
        pytest.fail("it was taken")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_temporary() -> None:
    with (
        pytest.raises(StorageError, match="make room and try again"),
        writing(Path("demo")),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_errors_of_the_demo_itself_are_not_renamed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), emptied_folder(tmp_path / "demo"):
        raise FileNotFoundError("a bug")
