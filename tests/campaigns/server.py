"""An embedded Triton for the campaigns, started and stopped by the command line as a user does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-m", "repo_builder"]


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server.

    Attributes:
        repository: What it serves.
        pid: tritonserver, which leads the process group of its stubs.
        http: ``host:port``.
        grpc: ``host:port``.
        metrics: ``host:port``.
    """

    repository: Path
    pid: int
    http: str
    grpc: str
    metrics: str

    def processes(self) -> dict[int, int]:
        """Return its living processes: id → resident memory, MiB."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError, ValueError):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.pid and fields[0] not in "ZX":
                    found[int(path.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") >> 20
        return found

    def stubs(self) -> list[int]:
        """Return the processes that run its models."""
        return [pid for pid in self.processes() if pid != self.pid]

    def alive(self) -> bool:
        """Whether tritonserver runs."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state not in "ZX"


def start(repository: Path) -> Server:
    """Serve a repository on free ports of 127.0.0.1."""
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    arguments = [
        "serve",
        str(repository),
        "--runtime",
        "embedded",
        "--detach",
        "--json",
        "--load-timeout",
        "120",
        *ports,
    ]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-500:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    metrics = said["metrics"].removeprefix("http://").removesuffix("/metrics")
    return Server(repository=repository, pid=said["pid"], http=said["http"], grpc=said["grpc"], metrics=metrics)


def stop(server: Server) -> None:
    """Stop it, or end what is left of it."""
    processes = server.processes()
    for pid in processes:
        with suppress(OSError):
            os.kill(pid, signal.SIGCONT)
    subprocess.run([*COMMAND, "serve", str(server.repository), "--stop"], capture_output=True, timeout=90)
    for pid in processes:
        if pid in server.processes():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def serving(repository: Path) -> Iterator[Server]:
    """Serve a repository for the time of a block."""
    server = start(repository)
    try:
        yield server
    finally:
        stop(server)
