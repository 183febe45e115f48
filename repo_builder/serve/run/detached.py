"""Servers that outlive the command that started them: each has a keeper, and a note by which it is found again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.core import files, servers
from repo_builder.core.errors import ServeError
from repo_builder.core.servers import Endpoints, ServerNote
from repo_builder.serve.run import control, health
from repo_builder.serve.run.job import Job
from repo_builder.serve.run.mps import Mps
from repo_builder.serve.run.process import kill_group, tail_of

_LOG = "triton.log"
_KEEPERS: list[subprocess.Popen[bytes]] = []  # those of servers left running: nobody waits for them here


def log_file(repository: Path) -> Path:
    """Return where the log of a repository's detached server goes; its folder is made."""
    folder = servers.folder_of(repository)
    with files.output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / _LOG


def note_file(repository: Path, *, detached: bool) -> Path:
    """Return the note of a server that is started here."""
    return servers.folder_of(repository) / (
        servers.DETACHED if detached else f"{os.getpid()}-{time.monotonic_ns()}.json"
    )


def running(repository: Path | None = None) -> list[ServerNote]:
    """Return the detached servers that run, of one repository or of all; what is left of others is removed."""
    found = []
    for path, note in servers.notes():
        if note is None or not note.alive():
            if note is not None and note.mps is not None:
                Mps.from_dict(dict(note.mps)).clean_up()  # what led the group was killed, and could not
            path.unlink(missing_ok=True)
        elif note.detached and (repository is None or note.repository == repository.resolve()):
            found.append(note)
    return found


@dataclass(frozen=True, kw_only=True)
class State:
    """What a server does.

    Attributes:
        ready: Whether it serves all that it was to serve.
        told: The same in a few words, and what keeps it from that.
    """

    ready: bool
    told: str


def state(note: ServerNote) -> State:
    """Return whether a server serves, and what keeps it from that."""
    url = note.endpoints.http_url
    if note.problem:
        return State(ready=False, told=f"not ready: {note.problem}")
    if not health.ready(url, note.models):
        loading = health.loading_models(tail_of(servers.folder_of(note.repository) / _LOG))
        why = f"still loading {', '.join(loading)}" if loading else "it does not answer that it is"
        return State(ready=False, told=f"not ready: {why}")
    try:
        failed = control.unavailable(url, note.http_headers())
    except (OSError, control.Refused):
        failed = {}
    words = "ready" + (f" without {', '.join(failed)}" if failed else "")
    if not note.restarts:
        return State(ready=not failed, told=words)
    times = "once" if len(note.restarts) == 1 else f"{len(note.restarts)} times"
    when = time.strftime("%H:%M:%S", time.localtime(note.restarts[-1].at))
    return State(ready=not failed, told=f"{words}, after {note.restarts[-1]} at {when} (started again {times})")


def to_dict(note: ServerNote) -> dict[str, Any]:
    """Return a note as plain JSON values to be shown: without its key."""
    at = note.endpoints
    return {
        "pid": note.pid,
        "keeper": note.keeper.pid,
        "since": note.since,
        "runtime": note.runtime,
        "repository": str(note.repository),
        "models": list(note.models),
        "endpoints": {"host": at.host, "http": at.http, "grpc": at.grpc, "metrics": at.metrics},
        "backends": dict(note.backends),
        "closed": note.restricted_key is not None,
        "restarts": [{"at": item.at, "what": item.what, "how": item.how} for item in note.restarts],
        "mps": note.mps,
        "log": str(servers.folder_of(note.repository) / _LOG),
    }


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
                hint=f"{stop}, or start it anew with serve --restart",
            )
        theirs = other.endpoints
        taken = sorted(wanted & {theirs.http, theirs.grpc, theirs.metrics})
        if taken:
            ports = f"port {taken[0]} is" if len(taken) == 1 else f"ports {', '.join(map(str, taken))} are"
            raise ServeError(
                f"{ports} in use by the detached server of {other.repository}",
                hint=f"{stop}, or choose others (0 for any free ones)",
            )


def stop(note: ServerNote, grace_s: float = 20.0) -> None:
    """Stop a detached server, its keeper and all its children, and forget it.

    Raises:
        ServeError: It belongs to another user.
    """
    keeper = note.keeper
    began = [process for process in (keeper, note.server) if process is not None and process.alive()]
    if keeper.alive():
        try:
            os.kill(keeper.pid, signal.SIGTERM)
        except PermissionError:
            raise ServeError(f"process {keeper.pid} belongs to another user", where=str(note.repository)) from None
        deadline = time.monotonic() + grace_s
        while keeper.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
    path = servers.folder_of(note.repository) / servers.DETACHED
    last = servers.read(path) or note  # it may have been started again meanwhile
    began += [process for process in (last.keeper, last.server) if process is not None and process.alive()]
    for group in {process.pid for process in began}:  # their children may be left
        kill_group(group)
    if last.mps is not None:
        Mps.from_dict(dict(last.mps)).clean_up()
    path.unlink(missing_ok=True)


class Kept:
    """A server whose keeper this process started, for as long as it waits for it to be ready."""

    def __init__(self, job: Job, note: ServerNote, log: Path) -> None:
        self._file = note_file(note.repository, detached=True)
        self._log = log
        self._code: int | None = None
        # Written before anything runs: the keeper puts itself in this process's place.
        servers.write(self._file, note)
        self._note = note
        self._keeper = _start(job, self._file, log)
        _KEEPERS.append(self._keeper)
        while self.pid == 0 and self._keeper.poll() is None:
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        """Triton's process, 0 where it has ended."""
        self._note = servers.read(self._file) or self._note
        return self._note.pid

    @property
    def exit_code(self) -> int | None:
        """Triton's exit code where it ended before it was ready; None while it is kept."""
        if self._keeper.poll() is None:
            return None
        note = servers.read(self._file)
        if note is not None and note.exit_code is not None:
            self._code = note.exit_code
        return self._code if self._code is not None else self._keeper.returncode

    def tail(self) -> list[str]:
        """Return the last lines of its log."""
        return tail_of(self._log)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until it is kept no longer; return its exit code, None when the time is over."""
        try:
            self._keeper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return self.exit_code

    def stop(self, grace_s: float) -> None:
        """Stop it and its keeper."""
        code = self.exit_code
        stop(servers.read(self._file) or self._note, grace_s)
        self._keeper.wait(grace_s)
        self._code = code if code is not None else 0


def _start(job: Job, note: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a keeper in a session of its own."""
    # The same places as here, and not the current folder first, where a file may be named like a library.
    places = [str(place) for place in sys.path]
    code = f"import sys; sys.path[:] = {places!r}; from repo_builder.serve.run.keeper import main; main()"
    with log.open("ab") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-c", code, str(note), str(log)],
            env=dict(job.environment),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if keeper.stdin is not None:
        with contextlib.suppress(BrokenPipeError), keeper.stdin as pipe:  # a pipe holds more than a job is long
            pipe.write(job.to_json().encode())
    return keeper
