"""CUDA MPS around an embedded server, with a stand-in for the driver's program: one way in and out, nothing left."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repo_builder import serve
from repo_builder.core import servers
from repo_builder.core.errors import MissingDependency, ServeError
from repo_builder.serve.run import embedded, health, launch, mps
from repo_builder.serve.run.mps import Mps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="MPS and the embedded server are Linux's")
needs_wheel = pytest.mark.skipif(embedded.unavailable() is not None, reason=str(embedded.unavailable()))
FREE_PORTS = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
EMBEDDED = ["--runtime", "embedded", "--mps", *FREE_PORTS]
QUICKLY = ["--", "--disable-auto-complete-config"]

PAIR = """
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }, { name: "twice" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { kind: KIND_CPU count: 2 } ]
"""


@pytest.fixture
def pair(small: Path) -> Path:
    """A repository of one model in two instances."""
    (small / "linear" / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{PAIR}')
    return small


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def runs(pid: int) -> bool:
    return servers.began(pid) is not None


class Everything:
    """All that a server under an MPS of its own consists of, to be asked later whether it is gone."""

    def __init__(self, told: dict[str, Any], members: dict[int, str]) -> None:
        self.mps = Mps.from_dict(told["mps"])
        (self.triton,) = [pid for pid, words in members.items() if "bin/tritonserver" in words.split()[0]]
        (self.daemon,) = [pid for pid, words in members.items() if words.endswith("nvidia-cuda-mps-control -f")]
        self.pids = [*members, *(self.mps.ask("get_server_list") or [])]
        assert len(self.pids) == 6  # leader, daemon, its server, tritonserver, two stubs
        names = (word for words in members.values() for word in words.split() if "_shm_region_" in word)
        self.places = [self.mps.pipes.parent, *{Path("/dev/shm") / name for name in names}]  # noqa: S108
        assert all(place.exists() for place in self.places)
        assert len(self.places) == 3

    def left(self) -> list[Any]:
        return [*filter(runs, self.pids), *(place for place in self.places if place.exists())]


@pytest.fixture
def all_of(group: Callable[[int], dict[int, str]]) -> Iterator[Callable[[dict[str, Any]], Everything]]:
    """Look at a server; where the test fails, it is this that clears away."""
    looked_at: list[Everything] = []

    def look(told: dict[str, Any]) -> Everything:
        looked_at.append(Everything(told, group(told["pid"])))
        return looked_at[-1]

    yield look
    for item in looked_at:
        for pid in filter(runs, item.pids):
            os.kill(pid, signal.SIGKILL)
        item.mps.clean_up()


@needs_wheel
@pytest.mark.server
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_mps(
    driver: Path, all_of: Callable[..., Everything], cli: Callable[..., Any], pair: Path, sent: signal.Signals
) -> None:
    command = cli(pair, *EMBEDDED, "--json", *QUICKLY)
    told = command.told()
    assert health.ready(told["http"], ["linear"])
    everything = all_of(told)
    assert told["mps"]["control"] == str(driver)
    assert len(told["mps"]["clients"]) == 2
    assert set(told["mps"]["clients"]) < set(everything.pids)
    assert {stat.S_IMODE(item.stat().st_mode) for item in (everything.places[0], *everything.places[0].iterdir())} == {
        0o700
    }
    command.process.send_signal(sent)
    code, errors = command.end()
    assert code == 0, errors
    assert "runtime: embedded" in errors
    assert "mps: 2 processes share the GPU" in errors
    assert everything.left() == []


@needs_wheel
@pytest.mark.server
def test_a_detached_server_keeps_its_mps_until_it_is_stopped(
    driver: Path, all_of: Callable[..., Everything], cli: Callable[..., Any], pair: Path
) -> None:
    started = cli(pair, *EMBEDDED, "--detach", "--json", *QUICKLY)
    told = started.told()
    code, errors = started.end()
    assert code == 0, errors
    assert "mps: 2 processes share the GPU" in errors
    everything = all_of(told)
    (shown,) = json.loads(cli("--status", "--json").process.communicate()[0])
    assert (shown["pid"], shown["mps"]) == (told["pid"], told["mps"])
    head, row = cli("--status").process.communicate()[0].splitlines()
    assert head.split()[-2:] == ["MPS", "STATE"]
    assert row.endswith("  2 processes  ready")
    assert cli("--stop", pair).end()[0] == 0
    assert everything.left() == []


@needs_wheel
@pytest.mark.server
@pytest.mark.parametrize("victim", ["triton", "leader"])
def test_whichever_is_killed_all_ends_and_is_told(
    driver: Path, all_of: Callable[..., Everything], cli: Callable[..., Any], pair: Path, victim: str
) -> None:
    command = cli(pair, *EMBEDDED, "--json", *QUICKLY)
    told = command.told()
    everything = all_of(told)
    os.kill(everything.triton if victim == "triton" else told["pid"], signal.SIGKILL)
    code, errors = command.end()
    assert code == 10
    assert "error: Triton ended unasked by SIGKILL" in errors
    assert ("mps: control.log: no such error as this" in errors) == (victim == "triton")
    assert everything.left() == []


@needs_wheel
@pytest.mark.server
def test_killing_the_command_takes_server_and_mps_along(
    driver: Path, all_of: Callable[..., Everything], cli: Callable[..., Any], pair: Path, soon: Callable[..., bool]
) -> None:
    command = cli(pair, *EMBEDDED, "--json", *QUICKLY)
    everything = all_of(command.told())
    command.process.kill()
    assert soon(lambda: not everything.left()), everything.left()


@needs_wheel
@pytest.mark.server
def test_of_a_killed_detached_server_the_rest_goes_when_it_is_looked_for(
    driver: Path, all_of: Callable[..., Everything], cli: Callable[..., Any], pair: Path, soon: Callable[..., bool]
) -> None:
    started = cli(pair, *EMBEDDED, "--detach", "--json", *QUICKLY)
    everything = all_of(started.told())
    assert started.end()[0] == 0
    (server,) = serve.running(pair)
    for pid in (server.keeper.pid, server.pid):
        os.kill(pid, signal.SIGKILL)
    assert soon(lambda: not server.alive())
    assert serve.running(pair) == []
    everything.places = everything.places[:1]  # a stub that is killed leaves its region, as without MPS
    assert soon(lambda: not everything.left()), everything.left()


@needs_wheel
@pytest.mark.server
def test_an_mps_that_runs_already_is_used_and_left(
    driver: Path,
    cli: Callable[..., Any],
    pair: Path,
    short: Path,
    monkeypatch: pytest.MonkeyPatch,
    soon: Callable[..., bool],
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(short))
    environment = {**os.environ, "CUDA_MPS_LOG_DIRECTORY": str(short)}
    theirs = Mps(control=driver, pipes=short, started=False)
    with (
        subprocess.Popen([driver, "-f"], env=environment, stdout=subprocess.DEVNULL) as daemon,
        ExitStack() as at_the_end,
    ):
        at_the_end.callback(theirs.ask, "quit")
        assert soon(lambda: theirs.ask("get_server_list") is not None)
        command = cli(pair, *EMBEDDED, "--json", *QUICKLY)
        told = command.told()
        assert told["mps"] == {**theirs.to_dict(), "clients": told["mps"]["clients"]}
        assert len(told["mps"]["clients"]) == 2
        assert theirs.clients(os.getpgrp()) == []  # its clients are none of this process's
        command.process.terminate()
        code, errors = command.end()
        assert code == 0, errors
        assert f"mps: the one that runs already is used ({short})" in errors
        assert daemon.poll() is None
        theirs.clean_up()
        assert theirs.ask("get_server_list") is not None
    assert daemon.returncode == 0


@needs_wheel
@pytest.mark.server
def test_that_nobody_uses_it_is_said(
    driver: Path, cli: Callable[..., Any], small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "alone")
    command = cli(small, *EMBEDDED, "--json", *QUICKLY)
    assert command.told()["mps"]["clients"] == []
    command.process.terminate()
    code, errors = command.end()
    assert code == 0, errors
    assert "mps: warning: no process of Triton uses it" in errors


@needs_wheel
@pytest.mark.server
def test_a_daemon_that_does_not_come_up_is_the_error(
    driver: Path, cli: Callable[..., Any], small: Path, monkeypatch: pytest.MonkeyPatch, short: Path
) -> None:
    monkeypatch.setenv("STAND_IN", "dies")
    monkeypatch.setenv("TMPDIR", str(short))
    code, errors = cli(small, *EMBEDDED).end()
    assert code == 10
    assert errors.splitlines()[-1] == (
        "error: CUDA MPS did not start: the control daemon ended with exit code 1: no GPU is fit for it → leave --mps "
        "out, or see whether nvidia-cuda-mps-control -f runs by itself"
    )
    assert list(short.iterdir()) == []


@needs_wheel
@pytest.mark.server
def test_why_triton_did_not_start_is_told_as_without_mps(driver: Path, pair: Path, tmp_path: Path) -> None:
    (pair / "linear" / "1" / "model.onnx").write_bytes(b"\0" * 100)
    log = tmp_path / "log"
    with (
        serve.start(pair, runtime="embedded", http_port=0, grpc_port=0, metrics_port=0, log=log, mps=True) as server,
        pytest.raises(ServeError, match="the model 'linear' did not load"),
    ):
        server.wait_ready(300)
    assert server.exit_code == 1
    assert server.mps is not None
    assert not server.mps.pipes.parent.exists()


@pytest.mark.parametrize("program", ["exit 1", "echo what; echo 12", "sleep 60", "echo '12 13'; exit 0"])
def test_only_numbers_are_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(mps, "_ANSWER_S", 0.5)
    control = tmp_path / "program"
    control.write_text(f"#!/bin/sh\n{program}\n")
    control.chmod(0o755)
    asked = Mps(control=control, pipes=tmp_path, started=True)
    assert asked.ask("get_server_list") is None  # there is no daemon's socket
    (tmp_path / "control").touch()
    assert asked.ask("get_server_list") == ([12, 13] if "13" in program else None)
    assert (asked.clients(1) is None) == ("13" not in program)


def test_where_there_is_no_gpu_or_no_program_that_is_said(
    driver: Path, pair: Path, monkeypatch: pytest.MonkeyPatch, short: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    with pytest.raises(ServeError, match=r"--mps: .*this machine has none → leave --mps out"):
        mps.prepare(gpu=False)
    driver.unlink()
    monkeypatch.setattr(mps, "_PLACES", ("/no/such/bin",))
    with pytest.raises(
        MissingDependency, match=r"--mps: nvidia-cuda-mps-control is neither on PATH nor in /no/such/bin"
    ):
        mps.prepare(gpu=True)
    assert list(short.iterdir()) == []


@needs_wheel
@pytest.mark.parametrize(("gpu", "message"), [(False, "this machine has none"), (True, "neither on PATH")])
def test_a_server_that_cannot_have_mps_is_not_started(
    pair: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, message: str
) -> None:
    monkeypatch.setattr(embedded, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(mps, "find_control", lambda: None)
    monkeypatch.setattr(launch, "Child", None)
    with pytest.raises((ServeError, MissingDependency), match=message):
        serve.start(pair, runtime="embedded", http_port=0, grpc_port=0, metrics_port=0, mps=True)


def test_a_server_that_cannot_be_run_leaves_no_folder(
    driver: Path, pair: Path, monkeypatch: pytest.MonkeyPatch, short: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(launch, "Child", fail)
    monkeypatch.setattr(embedded, "find_wheel", lambda: SimpleNamespace(server=Path("/bin/sh"), caches=short))
    monkeypatch.setattr(embedded.assembly, "assemble", lambda *_: short)
    monkeypatch.setattr(embedded, "stub_environment", lambda _: {})
    with pytest.raises(OSError, match="no more processes"):
        serve.start(pair, runtime="embedded", http_port=0, grpc_port=0, metrics_port=0, mps=True)
    assert list(short.iterdir()) == []


def test_the_container_is_refused_and_auto_means_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.container, "find_engine", lambda: "docker")
    for arguments in ({"runtime": "container"}, {"runtime": "auto", "image": "mine:7"}):
        with pytest.raises(ServeError, match=r"--mps: is for the embedded Triton.*leave --mps out"):
            launch.choose_runtime(**arguments, mps=True)
    assert launch.choose_runtime("auto", mps=True) == ("embedded", "as --mps asks")
    assert launch.choose_runtime("embedded", mps=True)[0] == "embedded"
    assert launch.choose_runtime("auto")[0] == "container"


def test_a_folder_with_a_long_name_is_no_place_for_sockets(
    driver: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    made = mps.prepare(gpu=True)
    try:
        assert not made.pipes.is_relative_to(long)
        assert len(str(made.pipes)) < 60
    finally:
        made.clean_up()
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/place")
    with pytest.raises(ServeError, match=r"/no/such/place: no folder for CUDA MPS can be made: No such file.*TMPDIR"):
        mps.prepare(gpu=True)


def test_only_folders_made_here_are_removed(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    Mps(control=Path("/bin/true"), pipes=tmp_path / "pipe", started=True).clean_up()
    assert (tmp_path / "pipe").is_dir()


def test_who_only_names_the_pipes_is_not_taken_for_ours(driver: Path) -> None:
    made = mps.prepare(gpu=True)
    environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(made.pipes)}
    with subprocess.Popen(["sleep", "60"], env=environment) as client:
        try:
            assert made.processes() == []
            made.clean_up()
            assert client.poll() is None
        finally:
            client.kill()


def test_idle_is_a_machine_that_could_and_does_not(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedded.mps_is_idle()
    with monkeypatch.context() as patch:
        patch.setattr(mps.Mps, "ask", lambda *_: [])
        assert not embedded.mps_is_idle()
    monkeypatch.setattr(embedded, "_has_gpu", lambda: False)
    assert not embedded.mps_is_idle()
