"""CUDA MPS for the embedded Triton: the instances of a model work on the GPU at the same time instead of in turns.

There, each instance of a Python-based backend is a process with a CUDA context of its own, and the GPU runs one context
at a time. CUDA MPS, which comes with NVIDIA's driver, lets several processes share it: their CUDA calls find a *control
daemon* through a folder of pipes. Where the user runs one it is used; otherwise each server gets one of its own, which
``mps_leader`` starts and ends with it.

https://docs.nvidia.com/deploy/mps/ describes the daemon and its commands.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.core.errors import MissingDependency, ServeError
from repo_builder.serve.run.process import kill

_PROGRAM = "nvidia-cuda-mps-control"
_PLACES = ("/usr/local/nvidia/bin", "/usr/bin")  # beside PATH: where drivers put it in containers, and elsewhere
_PIPES, _LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_MARK = "REPO_BUILDER_MPS"  # set for what is started here alone: others may name the pipes and are not to be killed
_USUAL_PIPES = "/tmp/nvidia-mps"  # noqa: S108 - where CUDA looks when nothing is set
_PREFIX = "rb-mps-"
_SHORT = "/tmp"  # noqa: S108 - used where the usual folder's name is too long
_LONGEST_BASE = 40  # bytes: the path of a socket, which lies some folders below, has at most 107
_ANSWER_S = 5.0


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

    @property
    def logs(self) -> Path:
        """The folder of logs of a control daemon that is the server's own."""
        return self.pipes.parent / "log"

    def make_folders(self) -> None:
        """Make the folders of a daemon that is the server's own; they go when it ends, and it may be started again."""
        if self.started:
            for folder in (self.pipes.parent, self.pipes, self.logs):
                folder.mkdir(mode=0o700, exist_ok=True)

    def command(self, served: Sequence[str]) -> list[str]:
        """Return the command that runs ``served`` under this MPS."""
        if not self.started:
            return list(served)
        # The same places as here, and not the current folder first, where a file may be named like a library.
        places = [str(place) for place in sys.path]
        code = f"import sys; sys.path[:] = {places!r}; from repo_builder.serve.run.mps_leader import main; main()"
        return [sys.executable, "-c", code, str(self.control), str(self.pipes), *served]

    def environment(self) -> dict[str, str]:
        """Return the environment of what is started for a server with an MPS of its own."""
        pipes = str(self.pipes)
        return {**os.environ, _PIPES: pipes, _LOGS: str(self.logs), _MARK: pipes}

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
            kill(self.processes())
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


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None
