"""The alert rules that ship: they load, and speak of metrics, labels and values that there are."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.exposition import read
from tests.unit.test_metrics import every_text

PROJECT = Path(__file__).parent.parent.parent
ALERTS = PROJECT / "deploy" / "prometheus" / "alerts.yaml"
GUIDE = PROJECT / "docs" / "monitoring.md"

RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
# Of PromQL, not followed by a bracket.
WORDS = {"and", "unless"}
GROUPING = re.compile(r"\b(?:by|on|group_left)\s*\(([^)]*)\)")


def exported() -> dict[str, dict[str, set[str]]]:
    """The values of each label of each metric."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, labels in read(every_text()):
        found[name].update()
        for label, value in labels:
            found[name][label].add(value)
    return found


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """Each metric that an expression names, and its matchers."""
    bare = GROUPING.sub("", expression)
    for name, matchers in re.findall(
        r"([a-zA-Z_:][\w:]*)\b(?!\s*\()(?:\{([^}]*)\})?", without_durations(bare)
    ):
        if name not in WORDS:
            yield name, matchers


def without_durations(expression: str) -> str:
    """`[30m]` names no metric."""
    return re.sub(r"\[\w+\]", "", expression)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_rule_is_whole(rule: dict[str, Any]) -> None:
    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "action"}
    assert rule["expr"].count("(") == rule["expr"].count(")")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_expression_names_only_what_is_exported(rule: dict[str, Any]) -> None:
    metrics = exported()
    used = list(selectors(rule["expr"]))
    assert used
    for name, matchers in used:
        assert name in metrics, name
        for label, how, wanted in re.findall(r'(\w+)(=~?)"([^"]*)"', matchers):
            values = wanted.split("|") if how == "=~" else [wanted]
            assert set(values) <= metrics[name][label]
    for labels in GROUPING.findall(rule["expr"]):
        for label in filter(None, re.split(r"[\s,]+", labels)):
            assert all(label in metrics[name] for name, _ in used)


def test_guide_lists_every_metric_and_no_other() -> None:
    told = set(re.findall(r"^\| `(vsearch_[a-z_]+)", GUIDE.read_text(), re.MULTILINE))
    assert told == set(exported())


def test_guide_names_every_alert() -> None:
    told = set(re.findall(r"`(Vsearch\w+)`", GUIDE.read_text()))
    assert told == {rule["alert"] for rule in RULES}
