"""`vsearch shards compact` as a user types it: what it says, and how it ends."""

import json
import os
from typing import Any

import pytest

from tests.end_to_end.workplace import TINY, Workplace
from tests.shards import local_path
from visual_search.errors import ExitCode

SMALL: dict[str, Any] = {"extract": {"shard_rows": 5}}
ROOMY = {"VSEARCH_EXTRACT__SHARD_ROWS": "40"}


@pytest.fixture
def shop(place: Workplace) -> Workplace:
    """20 images in four shards of each of two models, one of them retired since."""
    place.models["other"] = TINY | {"revision": "2"}
    place.publish(20)
    place.extract("tiny", "other", **SMALL)
    assert place.vsearch("models", "retire", "other").code == ExitCode.OK
    return place


def listed(place: Workplace, model: str) -> list[dict[str, Any]]:
    done = place.vsearch("shards", "list", "--model", model, "--json")
    found: list[dict[str, Any]] = json.loads(done.out)["shards"]
    return found


def test_a_dry_run_then_all_models_then_nothing(shop: Workplace) -> None:
    compact = ("shards", "compact")
    before = listed(shop, "tiny")
    assert len(before) == len(listed(shop, "other")) == 4
    dry = shop.vsearch(*compact, "--dry-run", **ROOMY)
    assert dry.code == ExitCode.OK
    lines = dry.out.splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "4 shards would become one with 20 rows"
    ] * 2
    assert listed(shop, "tiny") == before

    done = shop.vsearch(*compact, "--json", **ROOMY)
    assert done.code == ExitCode.OK, done
    told = json.loads(done.out)
    assert (told["schema_version"], told["dry_run"], told["below"]) == (1, False, 20)
    assert [group["model"] for group in told["groups"]] == ["other", "tiny"]
    (now,) = listed(shop, "tiny")
    group = told["groups"][1]
    assert group["outcome"] == "merged"
    assert {key: group[key] for key in ("shard_id", "uri", "rows", "bytes", "model_id")} == {
        key: now[key] for key in ("shard_id", "uri", "rows", "bytes", "model_id")
    }
    assert group["sources"] == [
        {key: shard[key] for key in ("shard_id", "uri", "rows", "bytes")} for shard in before
    ]
    assert len(listed(shop, "other")) == 1

    again = shop.vsearch(*compact, **ROOMY)
    assert (again.code, again.out) == (
        ExitCode.OK,
        "nothing to do: no two shards with fewer than 20 rows fit into one\n",
    )


def test_only_the_models_and_the_shards_that_were_named(shop: Workplace) -> None:
    compact = ("shards", "compact", "--model", "other")
    assert "nothing to do" in shop.vsearch(*compact, "--below", "5", **ROOMY).out
    done = shop.vsearch(*compact, "--below", "6", **ROOMY)
    assert "4 shards with " in done.out
    assert " became one with 20 rows and " in done.out
    assert (len(listed(shop, "other")), len(listed(shop, "tiny"))) == (1, 4)
    unknown = shop.vsearch("shards", "compact", "--model", "nobody")
    assert unknown.code == ExitCode.USAGE
    assert "model 'nobody' has not run on this catalogue" in unknown.err
    elsewhere = shop.vsearch("shards", "compact", "--output", str(shop.home / "other"), **ROOMY)
    assert "nothing to do" in elsewhere.out


def test_a_damaged_shard_ends_with_1_after_all_else_is_done(shop: Workplace) -> None:
    victim = local_path(listed(shop, "other")[0]["uri"])
    os.truncate(victim, 100)
    done = shop.vsearch("shards", "compact", **ROOMY)
    assert done.code == ExitCode.FAILED
    assert f"4 shards stay as they are: {victim}: 100 bytes, recorded " in done.out
    assert (len(listed(shop, "other")), len(listed(shop, "tiny"))) == (4, 1)
    assert shop.vsearch("shards", "verify", "--repair").code == ExitCode.OK
    assert shop.vsearch("shards", "compact", **ROOMY).code == ExitCode.OK
    assert [shard["rows"] for shard in listed(shop, "other")] == [15]


def test_status_and_runs_say_the_same_as_before(shop: Workplace) -> None:
    def told() -> tuple[Any, ...]:
        status = json.loads(shop.vsearch("status", "--json").out)["models"]
        return status, shop.vsearch("runs", "list", "--json").out

    before = told()
    shop.vsearch("shards", "compact", **ROOMY)
    assert told() == before
    (again,) = shop.extract("tiny", **SMALL)
    assert again.figures.claimed == 0
