"""What is installed from a wheel is whole: it needs nothing of the checkout it came from."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
from sqlalchemy import create_engine, text

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout, as `pip install .` does, with the build tools that are here."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT),
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the wheel in it; what it depends on is taken from here."""
    folder = tmp_path_factory.mktemp("site")
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-index", "--target", folder, wheel),
        cwd=folder,
    )
    return folder


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What `command` prints; it succeeds."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("VSEARCH_")}
    done = subprocess.run(
        command, cwd=cwd, env=ours | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def build_wheel(source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    files = contents(wheel)
    revisions = {path.name for path in (ROOT / "migrations" / "versions").glob("*.py")}
    assert revisions
    assert files >= {
        "visual_search/py.typed",
        "visual_search/configs/models.toml",
        "visual_search/migrations/env.py",
        *(f"visual_search/migrations/versions/{name}" for name in revisions),
    }
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "visual_search").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files >= modules
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)
    folders = {name.partition("/")[0] for name in files}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"visual_search"}
    assert not any("__pycache__" in name for name in files)


def test_wheel_is_the_same_from_the_source_distribution(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    assert contents(build_wheel(unpacked, tmp_path)) == contents(wheel)


def test_wheel_is_the_same_from_what_docker_is_given(wheel: Path, tmp_path: Path) -> None:
    context = tmp_path / "context"
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line.startswith("!"):
            continue
        source, target = ROOT / line[1:], context / line[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    assert contents(build_wheel(context, tmp_path)) == contents(wheel)


def test_installed_wheel_makes_a_database(site: Path, tmp_path: Path, database_url: str) -> None:
    environment = {
        "PYTHONPATH": str(site),
        "VSEARCH_DATABASE_URL": database_url,
        "VSEARCH_DATABASE__SCHEMA": "from_wheel",
    }
    where = "from visual_search.database import migrate; print(migrate.folder())"
    folder = run(sys.executable, "-c", where, cwd=tmp_path, **environment)
    assert Path(folder.strip()) == site / "visual_search" / "migrations"

    run(site / "bin" / "vsearch", "db", "upgrade", cwd=tmp_path, **environment)
    engine = create_engine(database_url)
    with engine.connect() as connection:
        made = connection.execute(
            text("SELECT to_regclass('from_wheel.feature_extraction_history') IS NOT NULL")
        ).scalar()
    engine.dispose()
    assert made


def test_installed_wheel_knows_its_models(site: Path, tmp_path: Path) -> None:
    listed = run(
        *(site / "bin" / "vsearch", "models", "list", "--json"),
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )
    assert "efficientnet_lite0" in listed
