"""The commands as a user types them: output, JSON, help, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.end_to_end.workplace import PROJECT, Finished, Workplace
from tests.faults.workers import wait_until


def document(ended: Finished) -> dict[str, Any]:
    assert ended.code == 0, ended
    parsed: dict[str, Any] = json.loads(ended.out)
    assert parsed.pop("schema_version") == 1
    return parsed


def commands() -> list[tuple[str, ...]]:
    """Every command there is."""
    from typer.main import get_command

    from visual_search.cli import app

    found: list[tuple[str, ...]] = []
    waiting: list[tuple[tuple[str, ...], Any]] = [((), get_command(app))]
    while waiting:
        path, command = waiting.pop()
        children = getattr(command, "commands", {})
        waiting += [((*path, name), child) for name, child in children.items()]
        if path and not children:
            found.append(path)
    return sorted(found)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_that_begins_with_examples_and_stands_in_the_docs(
    command: tuple[str, ...],
) -> None:
    from typer.testing import CliRunner

    from visual_search.cli import app

    shown = CliRunner().invoke(app, [*command, "--help"])
    assert shown.exit_code == 0
    assert re.search(r"Examples:\n +(VSEARCH_\S+ )?vsearch", shown.output), shown.output
    assert shown.output.index("Examples:") < shown.output.index("Options")
    name = f"vsearch {' '.join(command)}"
    assert name in (PROJECT / "docs" / "commands.md").read_text()


def test_help_answers_at_once_without_torch() -> None:
    script = (
        "import sys, contextlib\n"
        "from visual_search.cli import app\n"
        "with contextlib.suppress(SystemExit):\n"
        "    app(['--help'])\n"
        "heavy = {'torch', 'pyarrow', 'sqlalchemy', 'aiohttp', 'PIL', 'numpy', 'pydantic'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "vsearch catalog import" in ended.stdout


def test_a_working_day(place: Workplace) -> None:
    """Import, plan, extract, look, retry, verify: each command, and what it says."""
    place.server.serve("/missing.jpg", b"", status=404)
    urls = place.publish(5)
    rows = [f"p{n},{url},{n}.50" for n, url in enumerate(urls)]
    products = place.home / "products.csv"
    products.write_text("\n".join(["product_id,image_url,price", *rows]))
    with place.database.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM images")
        connection.exec_driver_sql("UPDATE catalogue SET images = 0")
    products.write_text(products.read_text() + f"\nlost,{place.server.url('/missing.jpg')},1\n")

    ended = place.vsearch("catalog", "import", str(products), "--product-id-column", "product_id")
    assert ended.code == 0, ended
    assert "6" in ended.out
    assert place.vsearch("status").out.startswith("6 images, no model has run yet")
    plan = document(place.vsearch("extract", "--model", "tiny", "--dry-run", "--json"))
    assert plan["plans"][0]["claimable"] == 6
    assert place.server.hits.total() == 0

    ended = place.vsearch("extract", "--model", "tiny")
    assert ended.code == 0, ended
    assert ended.out.startswith("tiny: 5 done, 1 failed, 1 shard")
    again = place.vsearch("extract", "--all-models")
    assert (again.code, again.out) == (0, "tiny: nothing to do; see `vsearch failures list`\n")

    (model,) = document(place.vsearch("status", "--json"))["models"]
    assert (model["total"], model["done"], model["failed"]) == (6, 5, 1)
    assert model["failed_by_reason"] == {"not_found": 1}
    assert model["last_run"]["counts"] == {"claimed": 6, "done": 5, "failed": 1}
    assert place.vsearch("status", "--exit-code").code == 3

    (failure,) = document(place.vsearch("failures", "list", "--json"))["failures"]
    assert (failure["reason"], failure["http_status"]) == ("not_found", 404)
    assert place.vsearch("failures", "retry", "--reason", "not_found").code == 0
    assert place.vsearch("status", "--exit-code").code == 4

    (run,) = document(place.vsearch("runs", "list", "--json"))["runs"]
    assert run["outcome"] == "completed"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", run["started_at"])
    shown = place.vsearch("runs", "show", run["run_id"][:6])
    assert "embed, core-seconds" in shown.out

    (shard,) = document(place.vsearch("shards", "list", "--json"))["shards"]
    assert shard["uri"].startswith("file:///")
    (path,) = place.vsearch("shards", "list", "--paths").out.splitlines()
    frame = pd.read_parquet(path)
    assert len(frame) == shard["rows"] == 5
    assert frame["embedding"][0].shape == (8,)
    assert place.vsearch("shards", "verify").out == "1 shard checked, 0 damaged\n"
    Path(path).write_bytes(b"damaged")
    assert place.vsearch("shards", "verify").code == 1
    assert "5 images pending again" in place.vsearch("shards", "verify", "--repair").out
    found = document(place.vsearch("shards", "gc", "--grace", "0", "--delete", "--json"))
    assert [file["why"] for file in found["files"]] == ["discarded"]


def test_settings_come_from_file_environment_and_flags(place: Workplace) -> None:
    shown = document(place.vsearch("config", "show", "--json", VSEARCH_DECODE__WORKERS="3"))
    assert shown["settings"]["decode"]["workers"] == 3
    assert shown["settings"]["download"]["deadline_s"] == 20  # the file's
    assert "[download]" in place.vsearch("config", "show").out


def test_the_database_says_its_version(place: Workplace) -> None:
    assert document(place.vsearch("db", "current", "--json"))["up_to_date"] is True
    assert "up to date" in place.vsearch("db", "upgrade").out


def test_doctor_names_what_is_wrong(place: Workplace) -> None:
    place.publish(2)
    place.rows("UPDATE images SET host = 'a b' WHERE image_id = 2 RETURNING 1")
    place.rows("UPDATE images SET host = 'localhost' WHERE image_id = 1 RETURNING 1")
    ended = place.vsearch("doctor", "--model", "tiny")
    assert ended.code == 0, ended
    assert all(line.startswith("ok ") for line in ended.out.splitlines())
    assert "looks up localhost, but not a b" in ended.out
    place.rows("DELETE FROM images WHERE image_id = 1")
    place.rows("UPDATE catalogue SET images = images - 1")
    assert "BAD DNS" in place.vsearch("doctor").out
    away = place.vsearch("doctor", VSEARCH_DATABASE_URL="postgresql://127.0.0.1:9/x")
    assert away.code == 1
    assert "BAD database" in away.out


def test_an_import_that_is_interrupted_ends_at_once_and_keeps_whole_chunks(
    place: Workplace,
) -> None:
    pipe = place.home / "products.csv"
    os.mkfifo(pipe)
    importing = place.start("catalog", "import", str(pipe))
    with pipe.open("w") as lines:  # and no end
        lines.write("image_url\n")
        lines.writelines(f"http://h.test/{n}.jpg\n" for n in range(60_000))
        lines.flush()
        images = "SELECT count(*) FROM images"
        wait_until(lambda: place.rows(images) > [(0,)], "a chunk is stored")
        importing.send_signal(signal.SIGINT)
        out, err = importing.communicate(timeout=60)
    assert (importing.returncode, out, err) == (130, "", "")
    assert place.rows(images) > [(0,)]
