"""What leads a server with a CUDA MPS of its own: it ends as what it ran, and ends the daemon, whatever that does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repo_builder.serve.run import health, mps
from repo_builder.serve.run.mps import Mps
from repo_builder.serve.run.process import Child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="MPS and the embedded server are Linux's")


@pytest.fixture
def lead(driver: Path) -> Iterator[Callable[..., tuple[Child, Mps]]]:
    """Run a shell script under an MPS of its own."""
    started: list[tuple[Child, Mps]] = []

    def run(script: str, *, prelude: str = "") -> tuple[Child, Mps]:
        made = mps.prepare(gpu=True)
        command = made.command(["/bin/sh", "-c", script])
        command[2] = command[2].replace("main()", f"{prelude}main()")
        started.append((Child(command, os.environ, log=None), made))
        return started[-1]

    yield run
    for child, made in started:
        child.stop(5)
        made.clean_up()


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -SEGV $$", -signal.SIGSEGV), ("kill -KILL $$", -signal.SIGKILL)],
)
def test_it_ends_as_what_it_ran(lead: Callable[..., tuple[Child, Mps]], script: str, code: int) -> None:
    child, made = lead(f"echo $CUDA_MPS_PIPE_DIRECTORY; {script}")
    assert child.wait(20) == code
    assert child.tail()[0] == str(made.pipes)
    assert not made.pipes.parent.exists()


def test_a_signal_is_handed_on_and_the_daemon_asked_to_quit(
    lead: Callable[..., tuple[Child, Mps]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soon: Callable[..., bool]
) -> None:
    monkeypatch.setenv("STAND_IN_ENDED", str(tmp_path / "ended"))
    child, made = lead("trap 'exit 9' TERM; echo on; while :; do sleep 0.05; done")
    assert soon(lambda: child.tail() == ["on"])
    child.stop(10)
    assert child.exit_code == 9
    assert made.processes() == []
    assert (tmp_path / "ended").exists()


def test_what_a_killed_leader_started_ends_by_itself(driver: Path, soon: Callable[..., bool]) -> None:
    """As of a detached server, when nobody looks: only the daemon's own child is not this program's to tie."""
    made = mps.prepare(gpu=True)
    leader = subprocess.Popen(made.command(["sleep", "60"]), start_new_session=True)
    try:
        assert soon(lambda: len(made.processes()) == 3)
        (server,) = made.ask("get_server_list") or [0]
        leader.kill()
        leader.wait()
        assert soon(lambda: made.processes() == [server])
    finally:
        leader.kill()
        leader.wait()
        made.clean_up()
    assert soon(lambda: made.processes() == [])


def test_a_signal_before_there_is_a_daemon_ends_it_cleanly(
    lead: Callable[..., tuple[Child, Mps]], monkeypatch: pytest.MonkeyPatch, soon: Callable[..., bool]
) -> None:
    monkeypatch.setenv("STAND_IN", "mute")
    child, made = lead("echo never")
    assert soon(lambda: len(made.processes()) == 1)
    child.stop(10)
    assert (child.exit_code, child.tail()) == (0, [])
    assert made.processes() == []
    assert not made.pipes.parent.exists()


@pytest.mark.parametrize(
    ("how", "prelude", "told"),
    [
        (
            "mute",
            "from repo_builder.serve.run import mps_leader; mps_leader._UP_S = 0.3; ",
            "does not answer after 0.3 s: Starting",
        ),
        ("dies", "", "ended with exit code 1: no GPU is fit for it"),
    ],
)
def test_the_last_words_of_a_daemon_that_is_not_up_are_told(
    lead: Callable[..., tuple[Child, Mps]], monkeypatch: pytest.MonkeyPatch, how: str, prelude: str, told: str
) -> None:
    monkeypatch.setenv("STAND_IN", how)
    child, made = lead("echo never", prelude=prelude)
    assert child.wait(20) == 1
    (line,) = child.tail()
    assert line.startswith(f"mps: error: the control daemon {told}")
    assert str(health.failure(1, child.tail())).startswith(f"CUDA MPS did not start: the control daemon {told}")
    assert made.processes() == []


def test_a_daemon_that_does_not_heed_quit_is_killed(
    lead: Callable[..., tuple[Child, Mps]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "deaf")
    child, made = lead(
        "echo on; read never", prelude="from repo_builder.serve.run import mps_leader; mps_leader._DOWN_S = 0.3; "
    )
    assert child.wait(20) == 1  # `read` at the end of its input
    assert made.processes() == []
    assert not made.pipes.parent.exists()


def test_a_daemon_that_dies_meanwhile_is_told(
    lead: Callable[..., tuple[Child, Mps]], soon: Callable[..., bool], group: Callable[[int], dict[int, str]]
) -> None:
    child, _ = lead("echo on; while :; do sleep 0.05; done")
    assert soon(lambda: child.tail() == ["on"])
    (daemon,) = [pid for pid, words in group(child.pid).items() if words.endswith("nvidia-cuda-mps-control -f")]
    os.kill(daemon, signal.SIGKILL)
    assert soon(lambda: len(child.tail()) == 2)
    assert child.tail()[1].startswith("mps: warning: the control daemon ended by SIGKILL; models may fail")


def test_a_program_that_cannot_be_run_is_one_sentence(lead: Callable[..., tuple[Child, Mps]], driver: Path) -> None:
    driver.write_text("no program")
    child, _ = lead("exit 0")
    assert child.wait(20) == 1
    (line,) = child.tail()
    assert line.startswith("mps: error: ")
    assert str(driver) in line


@pytest.mark.parametrize(("visible", "kept"), [("1,2", False), ("GPU-12ab", True), ("MIG-12ab", True)])
def test_numbers_of_devices_are_kept_from_the_daemon(
    lead: Callable[..., tuple[Child, Mps]],
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    kept: bool,
    soon: Callable[..., bool],
    group: Callable[[int], dict[int, str]],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    child, _ = lead("echo $CUDA_VISIBLE_DEVICES; while :; do sleep 0.05; done")
    assert soon(lambda: child.tail() == [visible])
    (daemon,) = [pid for pid, words in group(child.pid).items() if words.endswith("nvidia-cuda-mps-control -f")]
    values = Path(f"/proc/{daemon}/environ").read_bytes().split(b"\0")
    assert (f"CUDA_VISIBLE_DEVICES={visible}".encode() in values) == kept


def test_the_leader_starts_without_what_is_slow_to_import() -> None:
    code = "import sys; import repo_builder.serve.run.mps_leader; print({'click', 'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
