"""CUDA MPS for the embedded Triton: the instances of a model work on the GPU at the same time instead of in turns.

There, each instance of a Python-based backend is a process with a CUDA context of its own, and the GPU runs one context
at a time. CUDA MPS, which comes with NVIDIA's driver, lets several processes share it: their CUDA calls find a *control
daemon* through a folder of pipes. Where the user runs one it is used; otherwise each server gets one of its own. Then
``main`` leads the server's process group: it starts the daemon and tritonserver, and when tritonserver ends it ends the
daemon, removes its folder, and ends as tritonserver did. Whoever holds the server sees one process, as without MPS.

https://docs.nvidia.com/deploy/mps/ describes the daemon and its commands.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from repo_builder.errors import MissingDependency, ServeError
from repo_builder.serve.health import how_ended
from repo_builder.serve.process import shared_memory, tie_to_parent

_PROGRAM = "nvidia-cuda-mps-control"
_PLACES = ("/usr/local/nvidia/bin", "/usr/bin")  # beside PATH: where drivers put it in containers, and elsewhere
_PIPES, _LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_MARK = "REPO_BUILDER_MPS"  # set for what is started here alone: others may name the pipes and are not to be killed
_USUAL_PIPES = "/tmp/nvidia-mps"  # noqa: S108 - where CUDA looks when nothing is set
_PREFIX = "rb-mps-"
_SHORT = "/tmp"  # noqa: S108 - used where the usual folder's name is too long
_LONGEST_BASE = 40  # bytes: the path of a socket, which lies some folders below, has at most 107
_WORRYING = r"fail|error|not supported|exited with status [1-9]"
_UP_S, _ANSWER_S, _DOWN_S = 10.0, 5.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Mps:
    """The CUDA MPS that a server uses.

    Attributes:
        control: The program ``nvidia-cuda-mps-control``.
        pipes: The control daemon's folder of pipes.
        started: Whether it is the server's own, started and ended with it.
    """

    control: Path
    pipes: Path
    started: bool

    def command(self, served: Sequence[str]) -> list[str]:
        """Return the command that runs ``served`` under this MPS."""
        if not self.started:
            return list(served)
        # The same places as here, and not the current folder first, where a file may be named like a library.
        places = [str(place) for place in sys.path]
        code = f"import sys; sys.path[:] = {places!r}; from repo_builder.serve.mps import main; main()"
        return [sys.executable, "-c", code, str(self.control), str(self.pipes), *served]

    def ask(self, request: str) -> list[int] | None:
        """Return the numbers that the control daemon answers to one of its commands, None where it does not answer."""
        try:
            if not (self.pipes / "control").exists():
                return None
            done = subprocess.run(
                [str(self.control)],
                env={**os.environ, _PIPES: str(self.pipes)},
                input=f"{request}\n".encode(),
                capture_output=True,
                timeout=_ANSWER_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        words = done.stdout.split()
        if done.returncode != 0 or not all(word.isdigit() for word in words):
            return None
        return [int(word) for word in words]

    def clients(self, group: int) -> list[int] | None:
        """Return which processes of a process group use this MPS, None where its control daemon does not answer."""
        servers = self.ask("get_server_list")
        if servers is None:
            return None
        found = {pid for server in servers for pid in self.ask(f"get_client_list {server}") or []}
        return sorted(pid for pid in found if self.started or _group_of(pid) == group)

    def processes(self) -> list[int]:
        """Return the processes that were started for a server with this MPS, but for the one that asks."""
        setting = os.fsencode(f"{_MARK}={self.pipes}")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may end meanwhile, or be another user's
                if setting in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return sorted(set(found) - {os.getpid()})

    def clean_up(self) -> None:
        """Kill what is left of a server and the MPS of its own, and remove their folder; harmless when all is gone."""
        if self.started and self.pipes.parent.name.startswith(_PREFIX):
            _kill(self.processes())
            shutil.rmtree(self.pipes.parent, ignore_errors=True)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"control": str(self.control), "pipes": str(self.pipes), "started": self.started}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Mps:
        """Return what ``to_dict`` was called on."""
        return cls(control=Path(value["control"]), pipes=Path(value["pipes"]), started=bool(value["started"]))


def prepare(*, gpu: bool) -> Mps:
    """Return the MPS that a server is to be started with: the one that runs here, else folders for one of its own.

    Args:
        gpu: Whether this machine has a GPU.

    Raises:
        ServeError: There is no GPU, or no folder can be made.
        MissingDependency: The driver's program is not here.
    """
    if not gpu:
        reason = "CUDA MPS shares an NVIDIA GPU between processes, and this machine has none"
        raise ServeError(reason, where="--mps", hint="leave --mps out")
    control = find_control()
    if control is None:
        raise MissingDependency(
            f"{_PROGRAM} is neither on PATH nor in {' or '.join(_PLACES)}",
            where="--mps",
            hint="install it with NVIDIA's driver (Debian, Ubuntu: nvidia-compute-utils-<version>), or leave --mps out",
        )
    return running(control) or Mps(control=control, pipes=_new_folder(), started=True)


def find_control() -> Path | None:
    """Return the driver's program that starts and asks control daemons, None where there is none."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES])
    found = shutil.which(_PROGRAM, path=places)
    return Path(found) if found else None


def running(control: Path) -> Mps | None:
    """Return the MPS that CUDA programs started from here use anyway, None where there is none."""
    there = Mps(control=control, pipes=Path(os.environ.get(_PIPES) or _USUAL_PIPES), started=False)
    return there if there.ask("get_server_list") is not None else None


def main() -> None:
    """Run a command under an MPS of its own, as ``Mps.command`` says: program, folder of pipes, command."""
    control, pipes, *command = sys.argv[1:]
    code = _Leader(Mps(control=Path(control), pipes=Path(pipes), started=True)).run(command)
    if code < 0:  # by a signal: so does this process, without a core dump of its own
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL cannot be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


class _Leader:
    """The process that leads the group of a server with an MPS of its own."""

    def __init__(self, mps: Mps) -> None:
        self._mps = mps
        self._logs = mps.pipes.parent / "log"
        self._served: subprocess.Popen[bytes] | None = None
        self._asked = False  # to end
        self._ending = False

    def run(self, command: Sequence[str]) -> int:
        """Start the daemon and the command, wait for the command's end, and clear away; return its exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hand_on)
        try:
            daemon = self._start_daemon()
            reason = self._not_up(daemon)
            if reason is None and not self._asked:
                return self._serve(command, daemon)
            self._stop_daemon(daemon)
        except OSError as error:
            reason = str(error)
        finally:
            self._mps.clean_up()
        if self._asked:
            return 0
        _say(f"error: {reason}")  # health.failure knows these words
        return 1

    def _hand_on(self, number: int, _: FrameType | None) -> None:
        """Hand a signal on to the command, which ends in its own way."""
        self._asked = True
        if self._served is not None:
            self._served.send_signal(number)

    def _start_daemon(self) -> subprocess.Popen[bytes]:
        values = self._environment()
        # It would number the devices anew, and tritonserver, which has it too, would then look for them by old numbers.
        # Names mean the same to both.
        if not values.get("CUDA_VISIBLE_DEVICES", "").startswith(("GPU-", "MIG-")):
            values.pop("CUDA_VISIBLE_DEVICES", None)
        with (self._logs / "output").open("wb") as output:
            return subprocess.Popen(
                [str(self._mps.control), "-f"],
                env=values,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=tie_to_parent(),
            )

    def _not_up(self, daemon: subprocess.Popen[bytes]) -> str | None:
        """Wait until the daemon answers or the end is asked for; return why it will not."""
        deadline = time.monotonic() + _UP_S
        while not self._asked and self._mps.ask("get_server_list") is None:
            if daemon.poll() is not None:
                return f"the control daemon ended {how_ended(daemon.returncode)}: {self._last_words()}"
            if time.monotonic() > deadline:
                return f"the control daemon does not answer after {_UP_S:g} s: {self._last_words()}"
            time.sleep(0.05)
        return None

    def _serve(self, command: Sequence[str], daemon: subprocess.Popen[bytes]) -> int:
        self._served = subprocess.Popen(command, env=self._environment(), preexec_fn=tie_to_parent())
        if self._asked:  # before there was anything to hand it on to
            self._served.terminate()
        threading.Thread(target=self._watch, args=(daemon,), daemon=True).start()
        # Not reaped yet, it counts as alive for its children: they are still there to be found.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._served.pid, os.WEXITED | os.WNOWAIT)
        regions = shared_memory(os.getpgrp())
        code = self._served.wait()
        # Clients that a crash left behind: the daemon would wait for them.
        _kill(set(self._mps.processes()) - {daemon.pid, *(self._mps.ask("get_server_list") or ())})
        for region in regions:
            region.unlink(missing_ok=True)
        self._stop_daemon(daemon)
        for log in sorted(self._logs.glob("*")) if code and not self._asked else ():
            if told := _last_line(log, _WORRYING):  # the logs go with the folder, and may say why
                _say(f"{log.name}: {told}")
        return code

    def _watch(self, daemon: subprocess.Popen[bytes]) -> None:
        code = daemon.wait()
        if not self._ending:
            _say(f"warning: the control daemon ended {how_ended(code)}; models may fail until the server is restarted")

    def _stop_daemon(self, daemon: subprocess.Popen[bytes]) -> None:
        self._ending = True
        if daemon.poll() is None:
            self._mps.ask("quit")
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(_DOWN_S)
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
        deadline = time.monotonic() + _DOWN_S
        while self._mps.processes() and time.monotonic() < deadline:  # the daemon's own child takes its leave
            time.sleep(0.05)

    def _environment(self) -> dict[str, str]:
        pipes = str(self._mps.pipes)
        return {**os.environ, _PIPES: pipes, _LOGS: str(self._logs), _MARK: pipes}

    def _last_words(self) -> str:
        return _last_line(self._logs / "output") or _last_line(self._logs / "control.log") or "it said nothing"


def _new_folder() -> Path:
    """Make the folder of a new daemon, which only this user may enter; return that of its pipes."""
    base = ""
    try:
        base = tempfile.gettempdir()
        if len(os.fsencode(base)) > _LONGEST_BASE:
            base = _SHORT
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        for name in ("pipe", "log"):
            (folder / name).mkdir(mode=0o700)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ServeError(f"no folder for CUDA MPS can be made: {reason}", where=base, hint="set TMPDIR") from None
    return folder / "pipe"


def _last_line(path: Path, words: str = r"\S") -> str:
    """Return the last line of a file that has one of some words, empty where there is none."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if re.search(words, line, re.IGNORECASE)), "")


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"mps: {text}\n")
        sys.stderr.flush()
