"""The namespace: made once a session, with every case tried in it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.namespace.cases import Case, Outcome
from tests.namespace.network import REFUSED, namespaces

PROJECT = Path(__file__).parent.parent.parent
INSIDE = (sys.executable, "-W", "error", "-m", "tests.namespace.inside")
ENTRANCES = (
    ("unshare", "--net", "--mount"),
    # For those who are not root: as root of a user namespace, where the system allows it.
    ("unshare", "--user", "--map-root-user", "--net", "--mount"),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of every case.

    Attributes:
        mutants: Outcomes with a check missing, of those cases that should notice.
        sockets_only: Outcomes where neither URLs' hosts nor answers were checked.
        unguarded: Whether a client without a guard got a connection, by URL.
    """

    outcomes: dict[str, Outcome]
    crowd: Outcome
    mutants: dict[str, dict[str, Outcome]]
    sockets_only: dict[str, Outcome]
    unguarded: dict[str, bool]

    def __getitem__(self, case: Case) -> Outcome:
        return self.outcomes[case.key]


@pytest.fixture(scope="session")
def report() -> Report:
    reasons = []
    for entrance in ENTRANCES:
        try:
            _run(*entrance, "true").check_returncode()
            done = _run(*entrance, *INSIDE, *namespaces())
        except FileNotFoundError as error:
            reasons.append(str(error))
        except subprocess.CalledProcessError as error:
            reasons.append(error.stderr.strip())
        else:
            if done.returncode != REFUSED:
                break
            reasons.append(done.stderr.strip())
    else:
        unavailable(reasons)
    # Whatever is printed there was not expected: a warning, an exception in a callback.
    assert (done.returncode, done.stderr) == (0, "")
    return _read(json.loads(done.stdout))


def unavailable(reasons: list[str]) -> NoReturn:
    """Skip; in CI fail, for there nobody reads what was skipped."""
    text = f"no network namespace of our own: {'; '.join(dict.fromkeys(reasons))}"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False
    )


def _read(report: dict[str, Any]) -> Report:
    return Report(
        outcomes=_outcomes(report["outcomes"]),
        crowd=Outcome(**report["crowd"]),
        mutants={name: _outcomes(outcomes) for name, outcomes in report["mutants"].items()},
        sockets_only=_outcomes(report["sockets_only"]),
        unguarded=report["unguarded"],
    )


def _outcomes(outcomes: dict[str, dict[str, Any]]) -> dict[str, Outcome]:
    return {key: Outcome(**outcome) for key, outcome in outcomes.items()}
