"""Whole runs into buckets: S3 as moto has it, Google Cloud Storage as its emulator has it."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from pyarrow.fs import S3FileSystem

from tests.end_to_end.workplace import PROJECT, TINY, Workplace
from tests.object_store import BUCKET, Fault, ObjectServer
from visual_search import models
from visual_search.errors import ExitCode
from visual_search.models.artefacts import artefact_name, obtain_artefact, write_artefact
from visual_search.settings import StorageSettings
from visual_search.shard import read_vectors
from visual_search.storage import open_storage

SHARDS = {"extract": {"shard_rows": 10}}


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An output, and how it is reached."""

    output: str
    reach: dict[str, Any]

    @property
    def flags(self) -> dict[str, Any]:
        return {"output": self.output, "storage": self.reach, **SHARDS}

    @property
    def variables(self) -> dict[str, str]:
        """For a process of its own."""
        reach = {f"VSEARCH_STORAGE__{name.upper()}": str(v) for name, v in self.reach.items()}
        return {"VSEARCH_OUTPUT": self.output, **reach}

    @property
    def settings(self) -> StorageSettings:
        return StorageSettings(**self.reach)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        S3FileSystem(
            endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True
        ).create_dir(BUCKET)
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture(scope="module")
def gcs() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.gcs_emulator"],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as emulator:
        assert emulator.stdout is not None
        yield f"http://127.0.0.1:{int(emulator.stdout.readline())}"
        emulator.communicate()


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    prefix = f"{BUCKET}/{uuid4()}"
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3")
        return Bucket(output=f"s3://{prefix}", reach={"endpoint": endpoint, "region": "us-east-1"})
    endpoint = request.getfixturevalue("gcs")
    return Bucket(output=f"gs://{prefix}", reach={"endpoint": endpoint, "anonymous": True})


def uris(place: Workplace) -> list[str]:
    return [
        uri for (uri,) in place.rows("SELECT uri FROM shards WHERE state = 'committed' ORDER BY 1")
    ]


def test_a_run_fills_a_bucket_and_the_next_one_finds_nothing_to_do(
    place: Workplace, bucket: Bucket
) -> None:
    place.publish(25)
    (result,) = place.extract(**bucket.flags)
    assert (result.exit_code, result.figures.done, result.shards) == (ExitCode.OK, 25, 3)
    assert all(uri.startswith(f"{bucket.output}/model_id=tiny-") for uri in uris(place))
    found = [read_vectors(uri, bucket.settings) for uri in uris(place)]
    ids = np.concatenate([ids for ids, _ in found])
    assert sorted(ids.tolist()) == [
        i for (i,) in place.rows("SELECT image_id FROM images ORDER BY 1")
    ]
    (again,) = place.extract(**bucket.flags)
    assert (again.exit_code, again.figures.done) == (ExitCode.OK, 0)
    assert len(uris(place)) == 3


def test_the_vectors_are_those_of_a_folder(place: Workplace, bucket: Bucket) -> None:
    place.publish(12)
    place.extract(**bucket.flags)
    place.models["copy"] = TINY | {"revision": "1"}
    place.extract("copy", extract=SHARDS["extract"])
    vectors: dict[bool, dict[int, Any]] = {True: {}, False: {}}
    for uri in uris(place):
        ids, rows = read_vectors(uri, bucket.settings)
        vectors[uri.startswith("file:")] |= dict(zip(ids.tolist(), rows.tolist(), strict=True))
    assert len(vectors[True]) == 12
    assert vectors[True] == vectors[False]


def test_damage_is_found_and_repaired(place: Workplace, bucket: Bucket) -> None:
    place.publish(30)
    place.extract(**bucket.flags)
    storage = open_storage(bucket.output, bucket.settings)
    names = [uri.removeprefix(f"{bucket.output}/") for uri in uris(place)]
    changed = bytearray(storage.read(names[0]))
    changed[len(changed) // 2] ^= 1
    storage.write(names[0], bytes(changed))
    storage.delete(names[1])
    verify = place.vsearch("shards", "verify", "--repair", "--json", **bucket.variables)
    assert verify.code == ExitCode.OK
    told = json.loads(verify.out)
    assert {bad["uri"] for bad in told["damaged"]} == {
        f"{bucket.output}/{name}" for name in names[:2]
    }
    assert told["images_pending_again"] == 20
    (again,) = place.extract(**bucket.flags)
    assert again.figures.done == 20
    assert place.vsearch("shards", "verify", **bucket.variables).code == ExitCode.OK


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_store_that_cannot_be_reached_is_no_damage(place: Workplace, bucket: Bucket) -> None:
    place.publish(5)
    place.extract(**bucket.flags)
    away = bucket.variables | {"VSEARCH_STORAGE__ENDPOINT": "http://127.0.0.1:1"}
    verify = place.vsearch("shards", "verify", "--repair", **away)
    assert verify.code == ExitCode.TEMPORARY
    assert verify.err.startswith("vsearch: cannot read ")
    assert "Traceback" not in verify.err
    assert len(uris(place)) == 1


def test_gc_deletes_what_the_table_does_not_list(place: Workplace, bucket: Bucket) -> None:
    place.publish(12)
    place.extract(**bucket.flags)
    storage = open_storage(bucket.output, bucket.settings)
    orphan = f"model_id=tiny-0/date=2026-01-01/{uuid4()}.parquet"
    storage.write(orphan, b"left behind")
    storage.write("somebody/else.txt", b"not ours")
    gc = ("shards", "gc", "--grace", "0", "--json")
    dry = json.loads(place.vsearch(*gc, **bucket.variables).out)
    assert [file["path"] for file in dry["files"]] == [f"{bucket.output}/{orphan}"]
    assert storage.read(orphan) == b"left behind"
    assert place.vsearch(*gc, "--delete", **bucket.variables).code == ExitCode.OK
    assert {file.name for file in storage.files()} == {
        "_vsearch.json",
        "somebody/else.txt",
        *(uri.removeprefix(f"{bucket.output}/") for uri in uris(place)),
    }


def test_small_shards_are_merged_and_the_old_ones_stay_for_a_while(
    place: Workplace, bucket: Bucket
) -> None:
    place.publish(25)
    place.extract(**bucket.flags)
    variables = bucket.variables | {"VSEARCH_EXTRACT__SHARD_ROWS": "100"}
    old, vectors = uris(place), vectors_in(place, bucket)
    compact = place.vsearch("shards", "compact", "--json", **variables)
    assert compact.code == ExitCode.OK, compact
    (group,) = json.loads(compact.out)["groups"]
    assert uris(place) == [group["uri"]]
    assert group["uri"].startswith(f"{bucket.output}/model_id=tiny-")
    assert sorted(source["uri"] for source in group["sources"]) == old
    assert vectors_in(place, bucket) == vectors
    assert place.vsearch("shards", "verify", **variables).code == ExitCode.OK
    gc = ("shards", "gc", "--delete", "--grace", "0", "--json")
    assert json.loads(place.vsearch(*gc, **variables).out)["files"] == []
    found = json.loads(place.vsearch(*gc, "--superseded-grace", "0", **variables).out)["files"]
    assert [(file["path"], file["why"]) for file in found] == [(uri, "superseded") for uri in old]
    storage = open_storage(bucket.output, bucket.settings)
    assert [storage.uri(file.name) for file in storage.files()] == [
        f"{bucket.output}/_vsearch.json",
        group["uri"],
    ]


def test_a_damaged_object_is_not_merged(place: Workplace, bucket: Bucket) -> None:
    place.publish(25)
    place.extract(**bucket.flags)
    storage = open_storage(bucket.output, bucket.settings)
    victim = uris(place)[0]
    name = victim.removeprefix(f"{bucket.output}/")
    changed = bytearray(storage.read(name))
    changed[len(changed) // 2] ^= 1
    storage.write(name, bytes(changed))
    before = uris(place)
    variables = bucket.variables | {"VSEARCH_EXTRACT__SHARD_ROWS": "100"}
    compact = place.vsearch("shards", "compact", **variables)
    assert compact.code == ExitCode.FAILED
    assert f"3 shards stay as they are: {victim}: sha256" in compact.out
    assert uris(place) == before


def vectors_in(place: Workplace, bucket: Bucket) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for uri in uris(place):
        ids, vectors = read_vectors(uri, bucket.settings)
        found |= dict(zip(ids.tolist(), vectors.tolist(), strict=True))
    return found


def test_another_catalogues_prefix_is_refused(place: Workplace, bucket: Bucket) -> None:
    open_storage(bucket.output, bucket.settings).write(
        "_vsearch.json", json.dumps({"catalogue_id": str(uuid4())}).encode()
    )
    place.publish(1)
    (result,) = place.extract(**bucket.flags)
    assert result.exit_code is ExitCode.USAGE
    assert f"{bucket.output} holds the vectors of another catalogue" in str(result.error)


def test_a_bucket_that_is_not_there_is_one_sentence(place: Workplace, bucket: Bucket) -> None:
    place.publish(1)
    nowhere = bucket.flags | {"output": bucket.output.replace(BUCKET, "no-such-bucket")}
    (result,) = place.extract(**nowhere)
    assert result.exit_code is ExitCode.TEMPORARY
    assert "cannot write vectors to" in str(result.error)
    assert place.status().done == 0


def test_paths_are_uris_that_other_programs_take(place: Workplace, bucket: Bucket) -> None:
    place.publish(3)
    place.extract(**bucket.flags)
    listed = place.vsearch("shards", "list", "--paths", **bucket.variables)
    assert listed.out.split() == uris(place)


def test_an_artefact_is_fetched_once(place: Workplace, bucket: Bucket, tmp_path: Path) -> None:
    recipe = models.resolve("tiny", place.settings().models, precision="fp32", home=place.home)
    spec = replace(recipe, artefact_sha256=sha256(b"artefact").hexdigest())
    storage = open_storage(bucket.output, bucket.settings)
    write_artefact(storage, artefact_name(spec), b"artefact")
    kept = obtain_artefact(storage, spec, home=tmp_path)
    assert kept.read_bytes() == b"artefact"
    storage.delete(artefact_name(spec))
    assert obtain_artefact(storage, spec, home=tmp_path) == kept


def test_a_process_with_a_web_identity_ends(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pods at Amazon have one. With a file system that outlives its use, pyarrow hangs.

    The service that gives keys for the token has an address of its own, which no test can reach;
    the requests go out without any.
    """
    token = tmp_path / "token"
    token.write_text("a.web.token")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    place.publish(5)
    with ObjectServer.running() as server:
        run = place.vsearch(
            "extract",
            "--model",
            "tiny",
            AWS_ROLE_ARN="arn:aws:iam::123456789012:role/vsearch",
            AWS_WEB_IDENTITY_TOKEN_FILE=str(token),
            AWS_ROLE_SESSION_NAME="vsearch",
            AWS_EC2_METADATA_DISABLED="true",
            AWS_ENDPOINT_URL=server.endpoint,
            AWS_REGION="us-east-1",
            VSEARCH_OUTPUT=f"s3://{BUCKET}/vectors",
        )
    assert run.code == ExitCode.OK, run
    assert place.status().done == 5


@pytest.mark.parametrize("fault", [*Fault, "any"])
@pytest.mark.parametrize("images", [60, pytest.param(2_000, marks=pytest.mark.long)])
def test_an_object_store_that_fails_loses_nothing(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, fault: Fault | str, images: int
) -> None:
    """One of ten requests that write fails; for each third shard the first seven do."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    place.publish(images)
    seen: dict[str, int] = {}

    def strike(key: str) -> Fault | None:
        if not key.endswith(".parquet"):
            return None
        seen[key] = seen.get(key, 0) + 1
        stubborn = list(seen).index(key) % 3 == 0 and seen[key] <= 7
        if not stubborn and random.random() >= 0.1:
            return None
        return Fault(fault) if fault != "any" else random.choice(list(Fault))

    with ObjectServer.running() as server:
        server.fault = strike
        output = f"s3://{BUCKET}/vectors"
        reach = {"endpoint": server.endpoint, "region": "us-east-1", "outage_s": 60}
        rows = max(10, images // 40)
        (result,) = place.extract(output=output, storage=reach, extract={"shard_rows": rows})
        assert result.exit_code is ExitCode.OK, result.error
        assert sum(server.struck.values()) > 0
        held = [
            image_id
            for uri in uris(place)
            for image_id in read_vectors(uri, StorageSettings(**reach))[0].tolist()
        ]
        assert len(held) == len(set(held)) == images == place.status().done
        shards = {f"{output}/{key.removeprefix('vectors/')}" for key in server.objects}
        assert shards == {*uris(place), f"{output}/_vsearch.json"}
    print(f"{fault}: {images} images, {dict(server.struck)} faults, 0 lost, 0 twice")
