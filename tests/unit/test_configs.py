"""The config files that ship: whole, valid, and what they say of the defaults is true."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from visual_search.settings import Settings, load_settings

CONFIGS = Path(__file__).parent.parent.parent / "configs"
WHOLE = ("cpu.toml", "gpu.toml")

# `#name = …` and `#[table]` without a space are settings; `# text` is a comment.
UNSET = re.compile(r"^#(?=[a-z_]+ = |\[)", re.MULTILINE)


def names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting as a file names it, but for the users' own models."""
    for own, field in model.model_fields.items():
        name = f"{prefix}{field.alias or own}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from names(field.annotation, f"{name}.")
        elif name != "models":
            yield name


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their settings' names; the hosts in `headers` are no settings."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name != "headers":
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


@pytest.fixture(params=WHOLE)
def file(request: pytest.FixtureRequest) -> Path:
    path: Path = CONFIGS / request.param
    return path


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.toml")))
def test_every_config_file_loads(name: str) -> None:
    load_settings(CONFIGS / name)


def test_file_names_every_setting(file: Path) -> None:
    """A setting without a default value stands there as a comment."""
    everything = tomllib.loads(UNSET.sub("", file.read_text()))
    everything.pop("models")
    assert set(flat(everything)) == set(names(Settings))


def test_settings_that_are_not_set_are_valid_examples(file: Path, tmp_path: Path) -> None:
    everything = tmp_path / "everything.toml"
    everything.write_text(UNSET.sub("", file.read_text()))
    shown = load_settings(everything).shown()
    assert shown.pop("models")
    assert None not in flat(shown).values()


def test_file_departs_from_the_defaults_only_where_the_hardware_asks(file: Path) -> None:
    defaults, values = flat(Settings().shown()), flat(load_settings(file).shown())
    different = {name: values[name] for name in values if values[name] != defaults[name]}
    assert (
        different
        == {
            "cpu.toml": {"embed.device": "cpu"},
            "gpu.toml": {
                "download.concurrency": 256,
                "embed.device": "cuda",
                "extract.memory_budget": 4 << 30,
            },
        }[file.name]
    )
