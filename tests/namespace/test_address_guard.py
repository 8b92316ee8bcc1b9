"""The real downloader among addresses that all lead to a canary, in a namespace of its own.

Each case is a URL that a whole `Downloader` was given there: `cases.py` has them, `inside.py` tries
them, and here stands what must have come of it: which connections the servers saw and the kernel
counted, what was sent over them, and how the fetch ended.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.namespace import network
from tests.namespace.cases import (
    AT_GOOD,
    CASES,
    EMBEDDINGS,
    F1,
    F2,
    F3,
    F14,
    LED_INWARD,
    MIXED,
    OPENED,
    PUBLIC_POOL,
    REBINDING,
    UNDERSTOOD,
    Case,
    breaches,
    faults,
)
from tests.namespace.conftest import Report, unavailable
from tests.namespace.mutants import MUTANTS
from tests.namespace.servers import place

CONTROLS = ("S58", "S59", "S60", "S61", "S62")
IN_ONE = ("S40",)
# TCP knows no way to several hosts at once.
NO_ONE_ADDRESS = {
    *("http://[ff02::1]/", "http://224.0.0.1/", "http://255.255.255.255/"),
    *("http://[::ffff:127.255.255.255]/", "http://[::ffff:224.0.0.0]/"),
    *("http://[::ffff:239.255.255.255]/", "http://[::ffff:255.255.255.255]/"),
}


def each(cases: Iterable[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.key) for case in cases])


def all_faults(cases: Iterable[Case], report: Report) -> dict[str, list[str]]:
    found = {case.key: faults(case, report[case]) for case in cases}
    return {key: what for key, what in found.items() if what}


def test_every_case_of_the_table_is_tried() -> None:
    groups = {case.group for case in F1}
    assert groups == {f"S{number}" for number in range(1, 63)}
    assert len(CASES) == len([*F1, *F2, *F3, *F14])


@each(case for case in F1 if case.group not in (*CONTROLS, *IN_ONE))
def test_what_leads_inward_is_refused(report: Report, case: Case) -> None:
    assert faults(case, report[case]) == []


@each(case for case in F1 if case.group in CONTROLS)
def test_what_leads_outward_or_was_opened_is_fetched(report: Report, case: Case) -> None:
    assert faults(case, report[case]) == []


def test_without_a_guard_these_lead_inward(report: Report) -> None:
    """That the canary was not reached shows something only where it can be."""
    missed = {title for title, reached in report.unguarded.items() if not reached}
    assert missed == NO_ONE_ADDRESS
    assert report.unguarded.keys() == set(UNDERSTOOD)


@pytest.mark.parametrize("way", ["directly", "by redirect", OPENED])
@pytest.mark.parametrize("form", EMBEDDINGS)
def test_an_inward_address_inside_another_is_refused(report: Report, form: str, way: str) -> None:
    cases = [case for case in F2 if case.group == f"F2 {form}" and case.way == way]
    assert len(cases) == 31
    assert all_faults(cases, report) == {}


def test_a_name_that_changes_its_address_is_followed_nowhere_inward(report: Report) -> None:
    """Each of 100 names is public when first asked for, and inward when asked for again."""
    cases = [case for case in F1 if case.group == "S40"]
    assert len(cases) == 2 * len(REBINDING) == 200
    assert all_faults(cases, report) == {}


def test_many_at_once_are_led_inward_by_no_answer(report: Report) -> None:
    assert set(report.crowd.connections) == {AT_GOOD}
    assert report.crowd.opened == len(report.crowd.connections) == 100


def test_of_a_name_with_many_addresses_only_a_checked_one_is_reached(report: Report) -> None:
    assert len(F3) == len(MIXED) == 100
    assert Counter(case.reason is None for case in F3) == {True: 50, False: 50}
    assert all_faults(F3, report) == {}


@each(F14)
def test_what_is_meant_for_one_host_is_sent_to_no_other(report: Report, case: Case) -> None:
    assert faults(case, report[case]) == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_missing_check_is_noticed(report: Report, name: str) -> None:
    """Without it, some case in each of these groups reaches the canary or tells a secret."""
    outcomes = report.mutants[name]
    noticed = {CASES[key].group for key, one in outcomes.items() if breaches(CASES[key], one)}
    assert noticed == set(MUTANTS[name].noticed_by)


def test_the_check_of_each_socket_is_enough_to_stay_outside(report: Report) -> None:
    """Where nothing else is checked, a name with one inward address may be fetched from another."""
    public = {place(address, 80) for address in PUBLIC_POOL}
    reached = {
        key: one.connections
        for key, one in report.sockets_only.items()
        if not public.issuperset(one.connections) or one.opened != len(one.connections)
    }
    assert reached == {}
    assert len(report.sockets_only) == len(LED_INWARD)


def test_the_namespace_outside_is_left_alone(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_loopback_up", lambda: pytest.fail("it went on"))
    for outside in (network.namespaces(), set()):
        with pytest.raises(OSError, match="not in namespaces of our own"):
            network.build(tmp_path, outside, {}, (), "")


def test_a_machine_without_namespaces_skips_and_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not permitted"):
        unavailable(["not permitted", "not permitted"])
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="not permitted"):
        unavailable(["not permitted"])
