"""Storages: what is written is there whole, whatever the network makes of it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.object_store import BUCKET, Fault, ObjectServer
from visual_search.errors import StorageError, UsageError
from visual_search.settings import StorageSettings
from visual_search.storage import Folder, Storage, locate, open_storage, shown

BODY = bytes(range(256)) * 40
# More than one part of an upload.
LONG_BODY = bytes(range(256)) * 60_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with ObjectServer.running() as server:
        yield server


def settings(server: ObjectServer, **changed: object) -> StorageSettings:
    return StorageSettings.model_validate(
        {"endpoint": server.endpoint, "region": "us-east-1", "outage_s": 20} | changed
    )


def bucket(server: ObjectServer, **changed: object) -> Storage:
    return open_storage(f"s3://{BUCKET}/vectors", settings(server, **changed))


@pytest.fixture(params=["folder", "objects"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, server: ObjectServer) -> Storage:
    return Folder(tmp_path / "vectors") if request.param == "folder" else bucket(server)


def put(storage: Storage, name: str, body: bytes) -> None:
    new = storage.begin(name)
    try:
        new.file.write(body)
        new.file.flush()
        new.publish()
    finally:
        new.discard()


def test_a_file_is_there_once_it_is_published(storage: Storage) -> None:
    new = storage.begin("model_id=a/b.parquet")
    new.file.write(BODY)
    with pytest.raises(FileNotFoundError):
        storage.read("model_id=a/b.parquet")
    new.publish()
    assert storage.read("model_id=a/b.parquet") == BODY
    assert storage.size("model_id=a/b.parquet") == len(BODY)
    with storage.open("model_id=a/b.parquet") as file:
        file.seek(256)
        assert file.read(256) == BODY[:256]


def test_a_file_that_is_discarded_leaves_nothing(storage: Storage) -> None:
    new = storage.begin("a")
    new.file.write(BODY)
    new.discard()
    assert list(storage.files()) == []


def test_files_are_listed_and_deleted(storage: Storage) -> None:
    for name in ("x/2", "x/1", "y"):
        put(storage, name, BODY)
    assert [(file.name, file.bytes) for file in storage.files()] == [
        (name, len(BODY)) for name in ("x/1", "x/2", "y")
    ]
    assert all(file.modified_at > 0 for file in storage.files())
    storage.delete("x/1")
    storage.delete("x/1")
    assert [file.name for file in storage.files()] == ["x/2", "y"]


def test_what_is_not_there_is_an_empty_list_and_an_error(storage: Storage) -> None:
    assert list(storage.files()) == []
    for look in (storage.read, storage.size):
        with pytest.raises(FileNotFoundError):
            look("nothing")


def test_trying_out_changes_nothing(storage: Storage) -> None:
    storage.write("marker", b"mine")
    storage.try_out("marker")
    assert storage.read("marker") == b"mine"
    assert [file.name for file in storage.files()] == ["marker"]


def test_a_file_is_found_by_its_uri(storage: Storage, server: ObjectServer) -> None:
    put(storage, "model_id=a/date=b/c d.parquet", BODY)
    place, name = locate(storage.uri("model_id=a/date=b/c d.parquet"), settings(server))
    assert place.read(name) == BODY


@pytest.mark.parametrize("body", [BODY, LONG_BODY], ids=["one part", "parts"])
@pytest.mark.parametrize("fault", list(Fault))
def test_an_upload_is_tried_until_it_is_there(
    server: ObjectServer, fault: Fault, body: bytes
) -> None:
    """More often than the client's own library tries."""
    left = [4]

    def four_times(key: str) -> Fault | None:
        left[0] -= key.endswith("shard")
        return fault if key.endswith("shard") and left[0] >= 0 else None

    server.fault = four_times
    put(bucket(server), "shard", body)
    assert hashlib.sha256(server.objects["vectors/shard"]).digest() == hashlib.sha256(body).digest()
    assert server.struck[fault] >= (1 if fault is Fault.LOST_REPLY else 4)


def test_a_lost_reply_is_no_second_upload(server: ObjectServer) -> None:
    """Of which the answer is lost for good: only the object tells that it is there."""
    server.fault = lambda _key: Fault.LOST_REPLY
    put(bucket(server, outage_s=0.01), "shard", BODY)
    assert server.objects["vectors/shard"] == BODY


def test_another_object_of_the_same_size_is_not_taken_for_ours(server: ObjectServer) -> None:
    server.objects["vectors/shard"] = bytes(len(BODY))
    server.fault = lambda _key: Fault.ERROR
    with pytest.raises(StorageError, match=f"cannot write s3://{BUCKET}/vectors/shard: "):
        put(bucket(server, outage_s=0.01), "shard", BODY)


def test_a_store_that_is_not_there_is_one_sentence(server: ObjectServer) -> None:
    gone = server.endpoint
    server.shutdown()
    server.server_close()
    away = open_storage(
        f"s3://{BUCKET}", StorageSettings(endpoint=gone, region="us-east-1", outage_s=0.01)
    )
    with pytest.raises(StorageError, match=f"cannot list s3://{BUCKET}") as error:
        list(away.files())
    assert "\n" not in str(error.value)


def test_addresses(tmp_path: Path) -> None:
    plain = StorageSettings()
    assert open_storage(str(tmp_path), plain).folder == tmp_path
    assert open_storage(f"file://{tmp_path}/a%20b", plain).folder == tmp_path / "a b"
    relative = open_storage("relative", plain).folder
    assert relative is not None
    assert relative.is_absolute()
    assert open_storage("gs://bucket/a/b/", plain).uri("c") == "gs://bucket/a/b/c"
    assert open_storage("s3://bucket", plain).uri("c") == "s3://bucket/c"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://host/vectors", "of no known kind"),
        ("s3:///vectors", "names no bucket"),
        ("s3://key:secret@bucket/vectors", "keys belong in the environment"),
        ("s3://bucket/vectors?region=x", r"region in \[storage\]"),
    ],
)
def test_addresses_that_are_refused(address: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        open_storage(address, StorageSettings())
    assert "secret" not in str(refused.value)


def test_files_are_shown_as_other_programs_take_them(tmp_path: Path) -> None:
    assert shown(Folder(tmp_path).uri("a b")) == f"{tmp_path}/a b"
    assert shown("s3://bucket/a b") == "s3://bucket/a b"


def test_a_spooled_file_has_no_name(server: ObjectServer) -> None:
    """So that nothing is left of it, however the process ends."""
    file: BinaryIO = bucket(server).begin("shard").file
    assert isinstance(file.name, int)
    file.close()
