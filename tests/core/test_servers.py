"""The notes of servers: private, found by where they listen, and true only as long as their process lives."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from repo_builder.core import servers
from repo_builder.core.servers import Endpoints, Process, Restart, ServerNote


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def note(repository: Path, **changes: object) -> ServerNote:
    whole = ServerNote(
        server=Process.of(os.getpid()),
        keeper=Process.of(os.getpid()),
        detached=True,
        since=1.5,
        loaded=time.time() - 60,
        runtime="embedded",
        repository=repository.resolve(),
        models=("m",),
        endpoints=Endpoints(http=40001, grpc=40002, metrics=40003),
        restricted_key="secret",
        backends={"onnxruntime": "embedded"},
        arguments={"host": "127.0.0.1", "options": ["--id=x"]},
        restarts=(Restart(at=1.0, what="Triton", how="by SIGABRT"),),
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def write(told: ServerNote, name: str = servers.DETACHED) -> Path:
    path = servers.folder_of(told.repository) / name
    servers.write(path, told)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    told = note(tmp_path)
    path = write(told)
    assert servers.read(path) == told
    assert servers.notes() == [(path, told)]


def test_nobody_else_can_read_the_key(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        path = write(note(tmp_path))
        write(note(tmp_path, problem="again"))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:40001", "127.0.0.1:40002", "localhost:40001", "http://127.0.0.1:40001/v2", "grpc://localhost:40002"],
)
def test_a_server_is_found_where_it_listens(tmp_path: Path, url: str) -> None:
    write(note(tmp_path), "123-4.json")
    found = servers.find(url)
    assert found is not None
    assert found.http_headers() == {"repo-builder": "secret"}
    assert found.grpc_headers() == {"triton-grpc-protocol-repo-builder": "secret"}


@pytest.mark.parametrize(
    "url", ["127.0.0.1:40003", "127.0.0.1:1", "192.0.2.7:40001", "no.such.host.invalid:40001", "x", ""]
)
def test_the_key_goes_to_no_other(tmp_path: Path, url: str) -> None:
    write(note(tmp_path))
    assert servers.find(url) is None
    write(note(tmp_path, endpoints=Endpoints(host="0.0.0.0", http=40001, grpc=40002, metrics=40003)))  # noqa: S104
    assert servers.find(url) is None


def test_a_server_on_every_address_is_found_by_this_machine_s(tmp_path: Path) -> None:
    write(note(tmp_path, endpoints=Endpoints(host="::", http=40001)))
    assert servers.find("[::1]:40001") is not None
    assert servers.find("127.0.0.1:40001") is not None


def test_the_note_of_a_server_that_is_gone_is_not_believed(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        gone = Process.of(process.pid)
        write(note(tmp_path, server=gone, keeper=gone))
        assert servers.find("127.0.0.1:40001") is not None
        process.kill()
    assert servers.find("127.0.0.1:40001") is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, True),
        ({"models": ()}, True),
        ({"models": ("other",)}, False),
        ({"polls": True}, False),
        ({"detached": False}, False),
        ({"loaded": time.time() + 1e6}, False),
    ],
)
def test_servers_of_an_older_model_are_told(tmp_path: Path, changes: dict[str, object], told: bool) -> None:
    (tmp_path / "m").mkdir()
    write(note(tmp_path, **changes))
    assert bool(servers.stale(tmp_path, "m")) is told
    assert servers.stale(tmp_path, "absent") == []
    assert servers.stale(tmp_path / "elsewhere", "m") == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"server": 1}', '{"server": null, "keeper": 3}'])
def test_what_is_no_note_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert servers.read(path) is None
