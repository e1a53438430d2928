"""Artifacts outside the database: any bytes come back, and what is lost or damaged is said."""

from __future__ import annotations

import hashlib
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from dse.artifact_store import ArtifactStore, asked_store
from dse.errors import StorageError


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of a server with S3's interface on this machine."""
    import boto3

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="networks")
        yield "s3://networks/studies"
    server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "s3":
        return ArtifactStore(request.getfixturevalue("s3") + f"/{uuid.uuid4().hex}")
    folder = tmp_path / "a folder" if request.param == "file" else f"/{uuid.uuid4().hex}"
    return ArtifactStore(f"{request.param}://{folder}")


def objects(store: ArtifactStore) -> list[str]:
    return sorted(store._files.find(store._root))


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_any_bytes_come_back_and_equal_ones_are_kept_once(blobs: list[bytes]) -> None:
    store = ArtifactStore(f"memory:///{uuid.uuid4().hex}")
    digests = [store.put(blob) for blob in blobs + blobs]
    assert [store.get(digest) for digest in digests] == blobs + blobs
    assert len(objects(store)) == len(set(blobs))


def test_every_kind_of_store_holds_the_contract(store: ArtifactStore) -> None:
    blob = bytes(range(256)) * 500
    digest = store.put(blob)
    assert digest == hashlib.sha256(blob).hexdigest()
    assert store.put(blob) == digest
    assert store.get(digest) == blob
    assert [name.rpartition("/")[2] for name in objects(store)] == [digest]


def test_a_missing_object_is_one_sentence(store: ArtifactStore) -> None:
    with pytest.raises(
        StorageError, match=r"the graph of trial 3 is missing in .*evaluate"
    ) as told:
        store.get("0" * 64, "graph of trial 3")
    assert "\n" not in str(told.value)


def test_a_truncated_object_is_one_sentence_and_writing_it_again_mends_it(
    store: ArtifactStore,
) -> None:
    blob = b"weights" * 100
    digest = store.put(blob)
    store._files.pipe_file(store._place(digest), blob[:50])
    with pytest.raises(StorageError, match="is damaged: 50 bytes that are not those stored"):
        store.get(digest)
    store.put(blob)
    assert store.get(digest) == blob


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot be written"):
        ArtifactStore(f"file://{tmp_path / 'file'}").put(b"x")


def test_a_bucket_that_is_not_there_is_one_sentence(s3: str) -> None:
    with pytest.raises(StorageError, match=r"artifact store s3://nobucket/x cannot be written"):
        ArtifactStore("s3://nobucket/x").put(b"x")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("studies", "no URL of an artifact store"),
        ("file://", "no URL of an artifact store"),
        ("s4://bucket", "unknown artifact store 's4://'; did you mean 's3'"),
        ("http://host/x", "unknown artifact store"),
        ("s3://key:secret@bucket/x", "put them into the environment"),
        ("s3://bucket/x?key=secret", "has options"),
        ("file::memory://x", "unknown artifact store"),
    ],
)
def test_a_url_that_is_none_is_refused_without_telling_its_secrets(url: str, said: str) -> None:
    with pytest.raises(StorageError) as told:
        asked_store(url)
    assert said in str(told.value)
    assert "secret" not in str(told.value)


def test_the_option_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSE_ARTIFACTS", raising=False)
    assert asked_store() is None
    monkeypatch.setenv("DSE_ARTIFACTS", "s3://bucket/from-environment")
    assert asked_store() == "s3://bucket/from-environment"
    assert asked_store("file:///given/") == "file:///given"


def test_a_missing_library_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(StorageError, match=r'needs pip install "dse\[artifacts\]"'):
        ArtifactStore("file:///tmp/x")


@pytest.mark.parametrize("digest", ["../../etc/passwd", "A" * 64, ""])
def test_a_name_that_is_no_hash_reaches_no_file(tmp_path: Path, digest: str) -> None:
    with pytest.raises(StorageError, match="is not the SHA-256"):
        ArtifactStore(f"file://{tmp_path}").get(digest)
