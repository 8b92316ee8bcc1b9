"""Workers as actors on a real Ray cluster of two nodes, one of which may be lost."""

import json
import signal
import subprocess
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from tests.end_to_end.test_workers import (
    IMAGES,
    PATIENCE_S,
    PATIENT,
    SlowServer,
    vectors,
    wait_for_both,
)
from tests.end_to_end.workplace import Workplace
from tests.ray_nodes import RayNodes, ray_nodes

CANARY = "s3cret-canary"
# Without it Ray takes 127.0.0.1 for this machine's outward address, where nothing listens.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def nodes(place: Workplace) -> Iterator[RayNodes]:
    # Nothing of what the command is told: actors must have it from the command.
    environment = {
        name: value
        for name, value in place.environment().items()
        if not name.startswith("VSEARCH_")
    }
    with ray_nodes(environment) as nodes:
        yield nodes


def start(place: Workplace, nodes: RayNodes, *more: str, **variables: str) -> subprocess.Popen[str]:
    command = ("extract", "--model", "tiny", "--engine", "ray", "--ray-address", nodes.address)
    return place.start(*command, *more, **LOOPBACK | variables)


def test_actors_do_what_one_process_does(place: Workplace, nodes: RayNodes) -> None:
    place.publish(60)
    place.models["alone"] = place.models["tiny"]
    place.extract("alone")
    place.server.forget()
    header = json.dumps({"cdn.test": {"Authorization": CANARY}})
    with start(
        place, nodes, "--json", **PATIENT | {"VSEARCH_DOWNLOAD__HEADERS": header}
    ) as command:
        out, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 0, err
    (result,) = json.loads(out)["results"]
    assert result["counts"] == {"claimed": 60, "done": 60, "failed": 0}
    assert place.server.hits == {f"/{number}.jpg": 1 for number in range(60)}
    by_actors, by_one = vectors(place, "tiny"), vectors(place, "alone")
    assert by_actors.keys() == by_one.keys()
    for image_id, vector in by_one.items():
        np.testing.assert_allclose(by_actors[image_id], vector, atol=1e-5)
    # What actors were told in confidence is in none of the files that Ray keeps of them.
    logs = [path for path in nodes.folder.rglob("*") if path.is_file()]
    assert any("worker" in path.name for path in logs)
    told = [path for path in logs if CANARY.encode() in path.read_bytes()]
    assert not told
    assert CANARY not in out + err


@pytest.mark.long
def test_a_signal_to_the_command_drains_all_actors(place: Workplace, nodes: RayNodes) -> None:
    SlowServer(place)
    with start(place, nodes, **PATIENT) as command:
        wait_for_both(place, command)
        command.send_signal(signal.SIGTERM)
        out, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 143, err
    status = place.status()
    assert f"tiny: {status.done} done" in out
    assert 0 < status.done < IMAGES
    assert status.claimed == 0
    assert place.rows("SELECT outcome FROM runs") == [("stopped",), ("stopped",)]
    assert place.rows("SELECT count(*) FROM leases") == [(0,)]


@pytest.mark.long
def test_a_node_that_is_lost_costs_no_image_and_doubles_none(
    place: Workplace, nodes: RayNodes
) -> None:
    server = SlowServer(place)
    with start(place, nodes, **PATIENT) as command:
        wait_for_both(place, command)
        nodes.remove_one()
        server.in_a_hurry = True
        out, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 0, err
    assert f"tiny: {IMAGES:,} done, 0 failed" in out
    assert '"event": "worker_died"' in err
    assert len(vectors(place, "tiny")) == IMAGES
    status = place.status()
    assert (status.done, status.claimed, status.failed) == (IMAGES, 0, 0)
    assert place.rows("SELECT count(*) FROM leases") == [(0,)]
    assert place.rows("SELECT sum(done) FROM runs") == [(IMAGES,)]


@pytest.mark.long
def test_what_only_this_machine_has_is_refused_on_several_nodes(
    place: Workplace, nodes: RayNodes
) -> None:
    with TemporaryDirectory(prefix="vsearch-test-") as home:
        embedded = {"VSEARCH_HOME": home, "VSEARCH_DATABASE_URL": ""}
        urls = place.home / "urls.txt"
        urls.write_text("http://127.0.0.1/1.jpg")
        assert place.vsearch("catalog", "import", str(urls), **embedded).code == 0
        with start(place, nodes, **embedded) as command:
            _, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 2, err
    assert "the Ray cluster has 2 nodes; set VSEARCH_DATABASE_URL" in err
