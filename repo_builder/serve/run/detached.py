"""Servers that outlive the command that started them, remembered in small files under the user's cache folder.

A process id alone may be another process's by now: the file also keeps when that process began.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.core import files
from repo_builder.core.errors import ServeError
from repo_builder.serve.run import health
from repo_builder.serve.run.folders import cache_folder
from repo_builder.serve.run.mps import Mps
from repo_builder.serve.run.ports import Endpoints
from repo_builder.serve.run.process import kill_group

_STATE = "server.json"
_LOG = "triton.log"


@dataclass(frozen=True, kw_only=True)
class Detached:
    """A server that was left running.

    Attributes:
        pid: Its process and group.
        began: When that process began, in the kernel's clock ticks since boot.
        since: The same in seconds since the epoch.
        runtime: ``embedded`` or ``container``.
        repository: The model repository.
        models: Models that were named; empty means all.
        endpoints: Where it listens.
        mps: The CUDA MPS that its processes are to use.
    """

    pid: int
    began: int
    since: float
    runtime: str
    repository: Path
    models: tuple[str, ...]
    endpoints: Endpoints
    mps: Mps | None = None

    @property
    def log(self) -> Path:
        """Its log file."""
        return log_file(self.repository)

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return began(self.pid) == self.began

    def ready(self) -> bool:
        """Whether the server says that it is ready."""
        return health.ready(self.endpoints.http_url, self.models)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        mps = self.mps.to_dict() if self.mps else None
        value = {**dataclasses.asdict(self), "repository": str(self.repository), "models": list(self.models)}
        return {**value, "mps": mps, "log": str(self.log)}


def log_file(repository: Path) -> Path:
    """Return where the log of a repository's detached server goes; its folder is made."""
    folder = _folder(repository)
    with files.output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / _LOG


def remember(
    *,
    pid: int,
    runtime: str,
    repository: Path,
    models: Sequence[str],
    endpoints: Endpoints,
    mps: Mps | None = None,
) -> None:
    """Write down a server that was started detached."""
    state = Detached(
        pid=pid,
        began=began(pid) or 0,
        since=time.time(),
        runtime=runtime,
        repository=repository.resolve(),
        models=tuple(models),
        endpoints=endpoints,
        mps=mps,
    )
    files.write_json(_folder(repository) / _STATE, state.to_dict())


def forget(repository: Path) -> None:
    """Remove what was written down; the log stays."""
    (_folder(repository) / _STATE).unlink(missing_ok=True)


def running(repository: Path | None = None) -> list[Detached]:
    """Return the detached servers that run, of one repository or of all; what is written of others is removed."""
    found = []
    for path in sorted((cache_folder() / "servers").glob(f"*/{_STATE}")):
        state = _read(path)
        if state is None or not state.alive():
            if state is not None and state.mps is not None:
                state.mps.clean_up()  # what led the group was killed, and could not
            path.unlink(missing_ok=True)
        elif repository is None or state.repository == repository.resolve():
            found.append(state)
    return found


def refuse_clash(repository: Path | None, endpoints: Endpoints) -> None:
    """Refuse a second detached server on a repository, and ports that a detached server has.

    Args:
        repository: The repository to be served detached, None where the server will not be.
        endpoints: The ports wanted.

    Raises:
        ServeError: There is one.
    """
    wanted = {endpoints.http, endpoints.grpc, endpoints.metrics} - {0}
    for other in running():
        stop = f"stop it with repo-builder serve --stop {other.repository}"
        if repository is not None and other.repository == repository.resolve():
            raise ServeError(
                f"is already served, on http {other.endpoints.http_url} by process {other.pid}",
                where=str(repository),
                hint=stop,
            )
        theirs = other.endpoints
        taken = sorted(wanted & {theirs.http, theirs.grpc, theirs.metrics})
        if taken:
            ports = f"port {taken[0]} is" if len(taken) == 1 else f"ports {', '.join(map(str, taken))} are"
            raise ServeError(
                f"{ports} in use by the detached server of {other.repository}",
                hint=f"{stop}, or choose others (0 for any free ones)",
            )


def stop(server: Detached, grace_s: float = 15.0) -> None:
    """Stop a detached server and all its children, and forget it.

    Raises:
        ServeError: It belongs to another user.
    """
    if server.alive():
        try:
            os.kill(server.pid, signal.SIGTERM)
        except PermissionError:
            raise ServeError(f"process {server.pid} belongs to another user", where=str(server.repository)) from None
        deadline = time.monotonic() + grace_s
        while server.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        kill_group(server.pid)
        if server.mps is not None:
            server.mps.clean_up()
    forget(server.repository)


def began(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None where there is none, or only its exit code is left.

    Field 22 of ``/proc/PID/stat``, see proc(5).
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        # the second field, the command, is in parentheses and may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def _folder(repository: Path) -> Path:
    path = repository.resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return cache_folder() / "servers" / f"{path.name}-{digest}"


def _read(path: Path) -> Detached | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        value.pop("log")
        return Detached(
            **{
                **value,
                "repository": Path(value["repository"]),
                "models": tuple(value["models"]),
                "endpoints": Endpoints(**value["endpoints"]),
                "mps": Mps.from_dict(value["mps"]) if value.get("mps") else None,
            }
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
