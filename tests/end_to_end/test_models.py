"""Models as a user meets them: listed, shown, pulled, changed, activated and retired."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny_model
from tests.end_to_end.workplace import PROJECT, TINY, Finished, Workplace
from visual_search import models
from visual_search.errors import ExitCode
from visual_search.settings import ModelTable
from visual_search.status import model_statuses

OPEN = {key: value for key, value in TINY.items() if key != "precision"}
FIELDS = {
    "name", "model_id", "active", "origin", "dim", "precision", "spec", "weights_path", "problem",
}  # fmt: skip


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """Variables of a user who has neither database nor home."""
    return {"VSEARCH_DATABASE_URL": "", "VSEARCH_HOME": str(tmp_path / "nowhere")}


def document(ended: Finished) -> dict[str, Any]:
    assert ended.code == 0, ended
    parsed: dict[str, Any] = json.loads(ended.out)
    assert parsed.pop("schema_version") == 1
    return parsed


def listed(place: Workplace, name: str, **variables: str) -> list[dict[str, Any]]:
    found = document(place.vsearch("models", "list", "--json", **variables))["models"]
    assert all(set(model) == FIELDS for model in found)
    return [model for model in found if model["name"] == name]


def sentence(ended: Finished, code: ExitCode) -> str:
    """The one line for the user."""
    assert ended.code == code, ended
    (line,) = [line for line in ended.err.splitlines() if line.startswith("vsearch: ")]
    return line


def spec_id(place: Workplace, name: str, precision: Any = "fp32") -> str:
    tables = place.settings().models
    return models.resolve(name, tables, precision=precision, home=place.home).model_id


# --- list and show ---


def test_models_are_listed_without_database_home_or_torch(
    tmp_path: Path, nowhere: dict[str, str]
) -> None:
    script = (
        "import sys; from visual_search.cli import app\n"
        "app(['models', 'list', '--json'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(PROJECT), **nowhere},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)["models"]
    assert [model["name"] for model in found] == list(models.built_ins())
    for model in found:
        assert set(model) == FIELDS
        assert re.fullmatch(r"[a-z0-9._-]+", model["model_id"])
        assert (model["origin"], model["active"], model["precision"]) == ("built_in", False, "fp32")
        assert model["spec"]["dim"] == model["dim"]
    assert not list(tmp_path.iterdir())


def test_a_new_model_whose_table_says_its_precision_waits_for_no_torch(place: Workplace) -> None:
    place.publish(1)
    script = (
        "import sys; from visual_search.cli import app\n"
        "app(['extract', '--model', 'tiny', '--dry-run'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=place.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "tiny" in ended.stdout


def test_a_model_that_cannot_be_had_is_listed_with_the_reason(
    place: Workplace, nowhere: dict[str, str]
) -> None:
    gone = str(place.home / "gone.pth")
    place.models |= {"mine": TINY | {"weights": gone}, "Odd": TINY}
    found = document(place.vsearch("models", "list", "--json", **nowhere))["models"]
    mine, odd = (next(m for m in found if m["name"] == name) for name in ("mine", "Odd"))
    assert (mine["model_id"], mine["spec"], mine["dim"]) == (None, None, 8)
    assert gone in mine["problem"]
    assert odd["model_id"] is None
    assert "'Odd'" in odd["problem"]
    shown = place.vsearch("models", "list", **nowhere)
    assert shown.code == 0
    for line in (
        r"mine +– +8 +– +configured +missing",
        r"tiny +tiny-\w{10} +8 +fp32 +configured +none needed",
        r"resnet18 +resnet18-\w{10} +512 +fp32 +built in +(not downloaded|here)",
    ):
        assert re.search(f"^{line}$", shown.out, re.MULTILINE), shown.out
    assert gone in shown.out


def test_what_has_run_is_listed_as_active_and_a_changed_table_beside_it(place: Workplace) -> None:
    place.publish(1)
    place.extract()
    (before,) = listed(place, "tiny")
    assert (before["active"], before["origin"]) == (True, "registered")
    assert before["model_id"] == spec_id(place, "tiny")
    place.models["tiny"] = TINY | {"revision": "2"}
    active, changed = listed(place, "tiny")
    assert active == before
    assert (changed["active"], changed["origin"]) == (False, "configured")
    assert changed["model_id"] == spec_id(place, "tiny") != before["model_id"]


def test_what_show_prints_makes_the_same_model(place: Workplace, nowhere: dict[str, str]) -> None:
    config = place.home / "own.toml"
    own = {"tiny.two": OPEN | {"normalize": True}}
    config.write_text(
        '[models."tiny.two"]\n'
        + "\n".join(f"{key} = {json.dumps(value)}" for key, value in own["tiny.two"].items())
    )
    variables = nowhere | {"VSEARCH_CONFIG": str(config)}
    for name, precision in (("tiny.two", "bf16"), ("efficientnet_lite0", "fp32")):
        shown = place.vsearch("models", "show", name, "--precision", precision, **variables)
        assert shown.code == 0, shown
        ((printed_name, table),) = tomllib.loads(shown.out)["models"].items()
        assert (printed_name, table["precision"]) == (name, precision)
        tables = {name: ModelTable.model_validate(table)}
        again = models.resolve(name, tables, precision="fp32", home=place.home)
        assert again.model_id == table["model_id"]
    by_id = document(place.vsearch("models", "show", again.model_id, "--json", **variables))
    assert set(by_id["model"]) == FIELDS
    assert by_id["model"]["spec"] == json.loads(json.dumps(again.to_json()))
    assert not (place.home / "nowhere").exists()


def test_show_of_what_is_not_there_names_what_there_is(
    place: Workplace, nowhere: dict[str, str]
) -> None:
    said = sentence(place.vsearch("models", "show", "tiny-0123456789", **nowhere), ExitCode.USAGE)
    assert "'tiny-0123456789'" in said
    assert "`vsearch models list`" in said


# --- pull ---


def checkpoint(place: Workplace) -> dict[str, Any]:
    """A table whose weights are on the server."""
    file = place.home / "tiny.pth"
    torch.save(tiny_model.build().state_dict(), file)
    body = file.read_bytes()
    file.unlink()
    place.server.serve("/tiny.pth", body)
    return TINY | {
        "weights": place.server.url("/tiny.pth"),
        "weights_sha256": hashlib.sha256(body).hexdigest(),
    }


def test_weights_are_pulled_once_without_a_database_and_then_used(
    place: Workplace, nowhere: dict[str, str]
) -> None:
    place.models["pulled"] = checkpoint(place)
    home = {"VSEARCH_HOME": str(place.home)}
    first = place.vsearch("models", "pull", "pulled", "tiny", **nowhere | home)
    assert first.code == 0, first
    pulled, tiny = first.out.splitlines()
    path = Path(pulled.removeprefix("pulled: "))
    assert path.parent == place.home / "weights"
    assert path.is_file()
    assert tiny == "tiny: needs no file of weights"
    again = document(place.vsearch("models", "pull", "pulled", "--json", **nowhere | home))
    assert again == {"weights": [{"model": "pulled", "path": str(path)}]}
    assert listed(place, "pulled", **nowhere | home)[0]["weights_path"] == str(path)
    place.publish(2)
    (result,) = place.extract("pulled")
    assert (result.error, result.figures.done) == (None, 2)
    assert place.server.hits["/tiny.pth"] == 1


def test_weights_that_cannot_be_downloaded_are_worth_a_retry(place: Workplace) -> None:
    place.models["gone"] = checkpoint(place) | {"weights": place.server.url("/gone.pth")}
    said = sentence(place.vsearch("models", "pull", "gone"), ExitCode.TEMPORARY)
    assert "HTTP 404" in said
    assert "`vsearch models pull gone`" in said
    (result,) = place.extract("gone")
    assert result.exit_code is ExitCode.TEMPORARY
    assert place.rows("SELECT name FROM models") == []


def test_a_wrong_name_is_noticed_before_the_first_download(place: Workplace) -> None:
    place.models["pulled"] = checkpoint(place)
    said = sentence(place.vsearch("models", "pull", "pulled", "resnet81"), ExitCode.USAGE)
    assert "'resnet81'" in said
    assert place.server.hits["/tiny.pth"] == 0


def test_published_weights_are_asked_of_the_mirror(place: Workplace) -> None:
    place.server.serve("/mirror/resnet18-f37072fd.pth", b"not these")
    ended = place.vsearch(
        *("models", "pull", "resnet18"),
        VSEARCH_WEIGHTS__MIRROR=place.server.url("/mirror"),
        TORCH_HOME=str(place.home),
    )
    said = sentence(ended, ExitCode.USAGE)
    assert "f37072fd" in said
    assert place.server.hits["/mirror/resnet18-f37072fd.pth"] == 1


# --- another model under the same name ---


def test_a_changed_table_is_refused_until_it_is_activated(place: Workplace) -> None:
    place.publish(3)
    place.extract()
    old = spec_id(place, "tiny")
    place.models["tiny"] = TINY | {"revision": "2"}
    new = spec_id(place, "tiny")
    said = sentence(place.vsearch("extract", "--model", "tiny"), ExitCode.USAGE)
    assert old in said
    assert "(revision)" in said
    assert place.status().model_id == old
    (command,) = re.findall(r"`vsearch (.+?)`", said)
    assert command == f"models activate {new}"
    done = place.vsearch(*command.split())
    assert (done.code, done.err) == (0, "")
    assert done.out == f"tiny stands for {new}, no longer for {old}\n"
    assert place.status().pending == 3
    (result,) = place.extract()
    assert (result.model_id, result.figures.done) == (new, 3)
    assert place.rows("SELECT count(*) FROM shards WHERE state = 'committed'") == [(2,)]


def test_activating_what_its_table_no_longer_makes_says_so(place: Workplace) -> None:
    place.publish(1)
    place.extract()
    old = spec_id(place, "tiny")
    place.models["tiny"] = TINY | {"revision": "2"}
    again = place.vsearch("models", "activate", old)
    assert (again.code, again.out) == (0, f"tiny stands for {old} already\n")
    assert f"makes {spec_id(place, 'tiny')}" in again.err
    (refused,) = place.extract()
    assert refused.exit_code is ExitCode.USAGE
    place.models["tiny"] = TINY
    (result,) = place.extract()
    assert (result.model_id, result.error) == (old, None)


def test_another_precision_runs_beside_the_active_model_when_asked_for(place: Workplace) -> None:
    place.models["tiny"] = OPEN
    place.publish(2)
    place.extract(embed={"precision": "fp32"})
    (half,) = place.extract(embed={"precision": "bf16"})
    assert (half.model_id, half.figures.done) == (spec_id(place, "tiny", "bf16"), 2)
    assert place.status().model_id == spec_id(place, "tiny")
    (plain,) = place.extract()
    assert (plain.model_id, plain.run_id) == (spec_id(place, "tiny"), None)

    done = place.vsearch("models", "activate", "tiny", "--precision", "bf16")
    assert done.code == 0, done
    assert place.status().model_id == spec_id(place, "tiny", "bf16")
    (plain,) = place.extract()
    assert (plain.model_id, plain.run_id) == (spec_id(place, "tiny", "bf16"), None)


def test_a_retired_model_rests_until_it_is_activated(place: Workplace) -> None:
    place.publish(2)
    place.extract()
    model_id = spec_id(place, "tiny")
    retired = place.vsearch("models", "retire", "tiny")
    assert retired.code == 0, retired
    assert f"`vsearch models activate {model_id}`" in retired.out
    assert place.vsearch("models", "retire", "tiny").out == "tiny is retired already\n"
    assert model_statuses(place.database) == []
    (refused,) = place.extract()
    assert refused.exit_code is ExitCode.USAGE
    assert f"`vsearch models activate {model_id}`" in (refused.error or "")
    assert place.rows("SELECT count(*) FROM shards WHERE state = 'committed'") == [(1,)]
    back = place.vsearch("models", "activate", "tiny")
    assert (back.code, back.out) == (0, f"tiny stands for {model_id}\n")
    (result,) = place.extract()
    assert (result.error, result.run_id) == (None, None)


def test_activating_and_retiring_what_is_not_there(
    place: Workplace, nowhere: dict[str, str]
) -> None:
    assert "'tiny'" in sentence(place.vsearch("models", "retire", "tiny"), ExitCode.USAGE)
    said = sentence(place.vsearch("models", "activate", "resnet81"), ExitCode.USAGE)
    assert "resnet18" in said
    ended = place.vsearch("models", "activate", "tiny", **nowhere)
    assert "no catalogue" in sentence(ended, ExitCode.USAGE)
    assert not (place.home / "nowhere").exists()
