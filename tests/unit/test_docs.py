"""The guide says what is so."""

import json
import re
from pathlib import Path

import pytest

from tests.unit.test_configs import flat, names
from visual_search.errors import FailureReason
from visual_search.settings import Settings

PROJECT = Path(__file__).parent.parent.parent
PAGES = (
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    *sorted((PROJECT / "docs").rglob("*.md")),
)


def test_every_setting_stands_in_the_guide_with_its_default() -> None:
    guide = (PROJECT / "docs" / "settings.md").read_text()
    told = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+?) \|", guide, re.MULTILINE))
    assert set(told) == {*names(Settings), "models"}
    # As `config show` has them, before a place for the output is made up.
    defaults = flat(Settings().shown()) | {"output": None, "models": {}}
    for name, value in defaults.items():
        plain = value if isinstance(value, str) else json.dumps(value)
        assert told[name] == ("–" if value is None else f"`{plain.removesuffix('.0')}`"), name


def test_every_failure_reason_stands_in_the_guide() -> None:
    guide = (PROJECT / "docs" / "operations.md").read_text()
    told = set(re.findall(r"`([a-z_]+)`", guide))
    assert {reason.value for reason in FailureReason} <= told


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    missing = [
        target for target in targets if "://" not in target and not (page.parent / target).exists()
    ]
    assert not missing
