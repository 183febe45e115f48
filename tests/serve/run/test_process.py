"""Child processes: their output, their groups, and whom they outlive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from repo_builder.serve.run.process import Child, kill_group


def soon(holds: Callable[[], bool], seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def shell(script: str, log: Path | None = None, *, detached: bool = False) -> Child:
    return Child(["/bin/sh", "-c", script], os.environ, log=log, detached=detached)


def test_output_is_forwarded_to_stderr_and_its_end_kept(capsys: pytest.CaptureFixture[str]) -> None:
    child = shell("echo out; echo err >&2; printf 'h\\303\\274\\377'; exit 3")
    assert child.wait(10) == 3
    assert child.tail() == ["out", "err", "hü�"]
    captured = capsys.readouterr()
    assert captured.err == "out\nerr\nhü�"
    assert captured.out == ""


def test_output_can_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = shell("seq 1 1000", tmp_path / "log")
    assert child.wait(10) == 0
    assert child.tail()[-1] == "1000"
    assert len(child.tail()) == 400
    assert capsys.readouterr().err == ""


def test_a_closed_stderr_does_not_stop_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "closed").open("w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
    child = shell("seq 1 100000; exit 4")
    assert child.wait(10) == 4


def test_stop_lets_it_end_well_and_kills_it_otherwise() -> None:
    gentle = shell("trap 'exit 7' TERM; echo on; while :; do sleep 0.05; done")
    assert soon(lambda: gentle.tail() == ["on"])
    gentle.stop(10)
    assert gentle.exit_code == 7
    deaf = shell("trap '' TERM; echo on; while :; do sleep 0.05; done")
    assert soon(lambda: deaf.tail() == ["on"])
    deaf.stop(0.2)
    assert deaf.exit_code == -signal.SIGKILL


def test_what_the_child_leaves_behind_is_killed() -> None:
    child = shell("sleep 60 & echo $!; exit 5")
    assert child.wait(10) == 5
    assert not runs(int(child.tail()[0]))


def test_a_child_killed_from_outside_is_reaped_though_its_children_hold_the_pipe() -> None:
    child = shell("sleep 60 & echo $!; wait")
    assert soon(lambda: bool(child.tail()))
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    assert not runs(int(child.tail()[0]))


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        Child(["/no/such/program"], {}, log=None)


def test_killing_a_group_that_is_gone_is_nothing() -> None:
    child = shell("exit 0")
    child.wait(10)
    kill_group(child.pid)


# The parent starts the child in a thread that ends at once: the death signal must not follow that thread.
PARENT = """
import os, sys, threading, time
from pathlib import Path
from repo_builder.serve.run.process import Child
started = []
thread = threading.Thread(target=lambda: started.append(
    Child(["sleep", "60"], os.environ, log=Path(sys.argv[1]), detached=sys.argv[2] == "detached")))
thread.start()
thread.join()
print(started[0].pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["tied", "detached"])
def test_it_dies_with_its_parent_unless_it_is_detached(tmp_path: Path, how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log"), how], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        assert runs(pid)
        parent.kill()
    if how == "tied":
        assert soon(lambda: not runs(pid))
    else:
        time.sleep(0.3)
        assert runs(pid)
        kill_group(pid)
        assert soon(lambda: not runs(pid))
