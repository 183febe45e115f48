"""What is remembered of servers that were left running."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repo_builder.core import servers
from repo_builder.core.errors import ServeError
from repo_builder.core.servers import Endpoints, Process, Restart, ServerNote, cache_folder
from repo_builder.serve.run import detached, health


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def left_running(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Remember a process that sleeps, with a child that sleeps, as the server of a repository and its keeper."""
    started: list[subprocess.Popen[bytes]] = []

    def run(name: str = "repository", **ports: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["/bin/sh", "-c", "sleep 60 & wait"], start_new_session=True)
        started.append(process)
        (tmp_path / name).mkdir(exist_ok=True)
        note = ServerNote(
            server=Process.of(process.pid),
            keeper=Process.of(process.pid),
            detached=True,
            since=time.time(),
            loaded=time.time(),
            runtime="embedded",
            repository=(tmp_path / name).resolve(),
            models=("m",),
            endpoints=Endpoints(**{"http": 1, "grpc": 2, "metrics": 3, **ports}),
            restricted_key="secret",
        )
        servers.write(detached.note_file(tmp_path / name, detached=True), note)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_is_found_by_its_repository(left_running: Callable[..., Any], tmp_path: Path) -> None:
    process = left_running("one")
    left_running("two", http=11)
    (found,) = detached.running(tmp_path / "one")
    assert (found.pid, found.models, found.endpoints.grpc) == (process.pid, ("m",), 2)
    assert [item.repository.name for item in detached.running()] == ["one", "two"]
    assert detached.running(tmp_path / "three") == []
    shown = json.dumps(detached.to_dict(found))
    assert json.loads(shown)["log"] == str(detached.log_file(tmp_path / "one"))
    assert "secret" not in shown


def test_repositories_of_one_name_are_kept_apart(left_running: Callable[..., Any], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        left_running(f"{folder}/repository")
    assert len(detached.running()) == 2


def test_stopping_ends_the_whole_group_and_forgets(left_running: Callable[..., Any]) -> None:
    process = left_running()
    (found,) = detached.running()
    detached.stop(found, grace_s=5)
    assert process.wait(5) == -15
    listed = subprocess.run(["ps", "-o", "stat=", "-g", str(process.pid)], capture_output=True, text=True, check=False)
    assert all(state.startswith("Z") for state in listed.stdout.split())
    assert detached.running() == []
    detached.stop(found)  # once more is nothing


def test_a_server_that_died_is_noticed_and_forgotten(left_running: Callable[..., Any]) -> None:
    process = left_running()
    process.kill()  # not waited for: what is left is a zombie
    while servers.began(process.pid) is not None:
        pass
    assert detached.running() == []
    assert list(cache_folder().rglob("server.json")) == []


def test_another_process_with_that_id_is_not_taken_for_it(left_running: Callable[..., Any]) -> None:
    process = left_running()
    (file,) = cache_folder().rglob("server.json")
    note = servers.read(file)
    assert note is not None
    other = Process(pid=process.pid, began=note.keeper.began - 1)
    servers.write(file, dataclasses.replace(note, server=other, keeper=other))
    assert detached.running() == []
    assert process.poll() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"log": 1}', '{"log": 1, "pid": 2, "surprise": 3}'])
def test_a_damaged_state_is_forgotten(left_running: Callable[..., Any], text: str) -> None:
    left_running()
    (state,) = cache_folder().rglob("server.json")
    state.write_text(text)
    assert detached.running() == []
    assert not state.exists()


def test_a_clash_is_named(left_running: Callable[..., Any], tmp_path: Path) -> None:
    process = left_running(http=8000)
    repository = tmp_path / "repository"
    with pytest.raises(ServeError, match=f"already served, on http 127.0.0.1:8000 by process {process.pid}"):
        detached.refuse_clash(repository, Endpoints(http=0, grpc=0, metrics=0))
    with pytest.raises(ServeError, match=f"port 8000 is in use by the detached server of {repository}.*--stop"):
        detached.refuse_clash(tmp_path / "other", Endpoints(http=0, grpc=0, metrics=8000))
    with pytest.raises(ServeError, match="ports 2, 3 are in use"):
        detached.refuse_clash(None, Endpoints(http=5, grpc=2, metrics=3))
    detached.refuse_clash(None, Endpoints(http=0, grpc=0, metrics=0))


def test_when_a_process_began() -> None:
    assert servers.began(os.getpid()) == servers.began(os.getpid())
    ticks = servers.began(os.getpid())
    uptime = float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")
    assert ticks is not None
    assert 0 < ticks <= uptime + 1
    assert servers.began(2**22 + 1) is None


def test_the_state_says_what_is_wrong(left_running: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    left_running()
    (note,) = detached.running()
    assert detached.state(note).told == "not ready: it does not answer that it is"
    died = Restart(at=0, what="Triton", how="by SIGABRT")
    assert detached.state(dataclasses.replace(note, problem="next in 4 s")).told == "not ready: next in 4 s"
    monkeypatch.setattr(health, "ready", lambda *_: True)
    assert detached.state(note).told == "ready"
    told = detached.state(dataclasses.replace(note, restarts=(died, died))).told
    assert told.startswith("ready, after Triton ended by SIGABRT at ")
    assert told.endswith("(started again 2 times)")
