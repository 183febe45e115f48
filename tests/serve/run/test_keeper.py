"""Servers that were left running: what dies is started again and told, and nothing runs that nobody knows of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tritonclient import http
from tritonclient.utils import InferenceServerException

from repo_builder import serve
from repo_builder.core import servers
from repo_builder.core.errors import ServeError
from repo_builder.core.servers import ServerNote
from repo_builder.serve.run import control, detached, health, revival

Soon = Callable[..., bool]
server_test = pytest.mark.server


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, any_ports: dict[str, int], make: SimpleNamespace) -> Iterator[Path]:
    """The repository of a server that was left running, with two models."""
    repository = tmp_path_factory.mktemp("kept") / "repository"
    for name in ("linear", "other"):
        make.linear(repository / name / "1" / "model.onnx")
        make.config(repository / name, make.LINEAR)
    # what a dead process took with it is waited for at the end
    options = ["--exit-timeout-secs=1"]
    server = serve.start(repository, runtime="embedded", detach=True, options=options, **any_ports)
    server.wait_ready(300)
    time.sleep(3)  # until its keeper has seen that, too, on a busy machine: it gives up what dies before
    yield repository
    for note in serve.running(repository):
        serve.stop(note)


def note_of(repository: Path) -> ServerNote:
    (note,) = serve.running(repository)
    return note


def answers(note: ServerNote, model: str = "linear") -> bool:
    try:
        with http.InferenceServerClient(note.endpoints.http_url) as client:
            item = http.InferInput("x", [1, 4], "FP32")
            item.set_data_from_numpy(np.ones((1, 4), np.float32))
            return bool(client.infer(model, [item]).as_numpy("y").shape == (1, 3))
    except (InferenceServerException, OSError):
        return False


@server_test
def test_a_server_that_dies_is_started_again_on_its_ports(kept: Path, soon: Soon) -> None:
    before = note_of(kept)
    os.kill(before.pid, signal.SIGABRT)
    assert soon(lambda: note_of(kept).pid not in (0, before.pid) and answers(note_of(kept)), 300)
    after = note_of(kept)
    assert (after.keeper, after.endpoints) == (before.keeper, before.endpoints)
    assert after.loaded > before.loaded
    assert str(after.restarts[-1]) == "Triton ended by SIGABRT"
    assert soon(lambda: detached.state(note_of(kept)).told.startswith("ready, after Triton ended by SIGABRT at"))
    assert "repo-builder: Triton ended by SIGABRT; it is started again in" in detached.log_file(kept).read_text()


@server_test
def test_a_model_whose_process_dies_is_loaded_again_and_the_others_go_on(
    kept: Path, soon: Soon, group: Callable[[int], dict[int, str]]
) -> None:
    before = note_of(kept)
    (victim,) = [pid for pid, words in group(before.pid).items() if "linear_0" in words]
    os.kill(victim, signal.SIGKILL)
    assert answers(before, "other")
    assert soon(lambda: answers(before), 300)
    after = note_of(kept)
    assert after.pid == before.pid
    assert str(after.restarts[-1]) == "the process of the model 'linear' ended by SIGKILL"
    assert soon(lambda: detached.state(note_of(kept)).told.startswith("ready, after the process of the model 'linear'"))


@server_test
def test_the_administration_is_closed_to_clients(kept: Path) -> None:
    note = note_of(kept)
    url, code = note.endpoints.http_url, "class TritonPythonModel: pass"
    with http.InferenceServerClient(url) as client:
        for call in (
            lambda: client.load_model("theirs", config="{}", files={"file:1/model.py": code.encode()}),
            lambda: client.unload_model("linear"),
            lambda: client.get_model_repository_index(),
            lambda: client.register_system_shared_memory("r", "/r", 64),
            lambda: client.get_system_shared_memory_status(),
            lambda: client.update_log_settings({"log_verbose_level": 1}),
            lambda: client.get_trace_settings(),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()
        key = note.http_headers()
        assert client.get_system_shared_memory_status(headers=key) == []
        assert {item["name"] for item in client.get_model_repository_index(headers=key)} == {"linear", "other"}
    shown = json.dumps([detached.to_dict(note), detached.state(note).told])
    assert note.restricted_key is not None
    assert note.restricted_key not in shown


@server_test
def test_another_start_serves_what_lies_there_now(kept: Path, cli: Callable[..., Any]) -> None:
    before = note_of(kept)
    assert servers.stale(kept, "linear") == []
    os.rename(kept / "linear", kept.parent / "aside")  # as a build does it: the folder is another
    (kept.parent / "aside").rename(kept / "linear")
    (kept / "linear" / "labels.txt").write_text("x")
    assert [note.pid for note in servers.stale(kept, "linear")] == [before.pid]
    code, errors = cli("--restart", kept).end()
    assert code == 0, errors
    after = note_of(kept)
    assert after.endpoints == before.endpoints
    assert after.pid != before.pid
    assert after.restricted_key != before.restricted_key
    assert servers.stale(kept, "linear") == []
    assert answers(after)


@server_test
def test_stopping_means_the_repository_of_this_folder(
    kept: Path, cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, errors = cli("--stop").end()
    assert code == 0
    assert f"no detached server is running for model_repository; those of {kept}" in errors
    assert "--all" in errors
    assert answers(note_of(kept))


@server_test
def test_nothing_outlives_a_keeper_that_is_killed(small: Path, any_ports: dict[str, int], soon: Soon) -> None:
    server = serve.start(small, runtime="embedded", detach=True, **any_ports)
    server.wait_ready(300)
    note = note_of(small)
    assert note.server is not None
    os.kill(note.keeper.pid, signal.SIGKILL)
    assert soon(lambda: not note.alive(), 300)
    assert serve.running(small) == []


LAUNCHER = """
import sys
from pathlib import Path
from repo_builder import serve
from repo_builder.core import servers
from repo_builder.serve.run import detached
if sys.argv[2] == "before":
    started = detached._start
    detached._start = lambda *given: started(*given) and sys.exit(0)
serve.start(Path(sys.argv[1]), runtime="embedded", detach=True, http_port=0, grpc_port=0, metrics_port=0)
sys.exit(0)
"""


@server_test
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_launcher_that_ends_early_leaves_a_server_that_is_known(small: Path, soon: Soon, when: str) -> None:
    subprocess.run([sys.executable, "-c", LAUNCHER, str(small), when], check=True)
    try:
        time.sleep(1 if when == "before" else 0)  # a keeper whose note was swept before it saw it starts nothing
        found = serve.running(small)
        assert found or when == "before"
        assert not found or soon(lambda: detached.state(note_of(small)).ready, 300)
    finally:
        for note in serve.running(small):
            serve.stop(note)
    told = subprocess.run(["ps", "-ww", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    assert [line for line in told.splitlines() if str(small) in line] == []


@server_test
def test_a_server_that_never_gets_ready_is_not_kept(small: Path, any_ports: dict[str, int]) -> None:
    (small / "linear" / "1" / "model.onnx").write_bytes(b"nothing")
    server = serve.start(small, runtime="embedded", detach=True, **any_ports)
    with pytest.raises(ServeError, match="the model 'linear' did not load"):
        server.wait_ready(300)
    assert server.exit_code == 1
    assert serve.running(small) == []


def test_waits_get_longer_and_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    backoff = revival.Backoff()
    assert [backoff.next() for _ in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    now[0] += 10_000
    assert backoff.next() == 0


class Watched:
    """Stands in for ``stubs.Watch``: says what it is told to."""

    def __init__(self, *_: object) -> None:
        self.dead: list[Any] = []

    def look(self) -> list[Any]:
        return self.dead


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setattr(revival, "Watch", Watched)
    monkeypatch.setattr(revival, "_LOOK_EVERY_S", 0)

    def make(*, explicit: bool) -> revival.Models:
        job = SimpleNamespace(root="/r", explicit=explicit)
        note = SimpleNamespace(endpoints=servers.Endpoints(), http_headers=dict)
        return revival.Models(1, job, note)  # type: ignore[arg-type]

    return SimpleNamespace(make=make)


def test_a_server_that_loads_nothing_by_request_is_given_up(models: SimpleNamespace) -> None:
    looked = models.make(explicit=False)
    assert looked.look() is None
    looked._watch.dead = [revival.Dead(pid=2, model="m", how="by SIGKILL")]
    event = looked.look()
    assert event.give_up
    assert str(event.restart) == "the process of the model 'm' ended by SIGKILL"


def test_a_model_that_is_refused_is_tried_again_ever_more_seldom(
    models: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise control.Refused("no such file")

    monkeypatch.setattr(control, "reload", refuse)
    looked = models.make(explicit=True)
    looked._watch.dead = [revival.Dead(pid=2, model="m", how="by SIGKILL")]
    assert looked.look().next_step == "it is loaded again in 0 s"
    event = looked.look()
    assert not event.give_up
    assert event.problem == "the model 'm' is not loaded again: no such file; the next try is in 1 s"
    assert looked.look() is None


def test_a_crash_while_loading_names_the_model_and_the_signal() -> None:
    loading = 'I1125 02:32:52.749970 10973 model_lifecycle.cc:472] "loading: tiny:1"'
    error = health.failure(-signal.SIGSEGV, [loading])
    assert error.message == "Triton ended by SIGSEGV while it loaded the model 'tiny'"
    both = health.failure(-signal.SIGABRT, [loading, loading.replace("tiny", "big")])
    assert both.message == "Triton ended by SIGABRT while it loaded one of the models tiny, big"
