"""The notes that servers started by repo-builder leave of themselves, for whoever has to find or to ask them.

Each server has a file under the user's cache folder that only this user may read: it holds the key to the parts of
Triton's interface that are closed to clients (``restricted_key``). A process id alone may be another process's by now:
the file also keeps when that process began.

    note = servers.find("127.0.0.1:8001")
    headers = note.grpc_headers() if note else {}
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repo_builder.core import files
from repo_builder.core.foreign import parsed

KEY_NAME = "repo-builder"  # the key's name in Triton's options, and the header of HTTP
GRPC_HEADER = f"triton-grpc-protocol-{KEY_NAME}"
DETACHED = "server.json"  # other notes are called after their process
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where a server listens.

    Attributes:
        host: Address that it binds to, as in ``127.0.0.1``.
        http: Port of HTTP.
        grpc: Port of gRPC.
        metrics: Port of the Prometheus metrics.
    """

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @property
    def http_url(self) -> str:
        """``host:port`` of HTTP, as tritonclient takes it."""
        return f"{self._reachable}:{self.http}"

    @property
    def grpc_url(self) -> str:
        """``host:port`` of gRPC, as tritonclient takes it."""
        return f"{self._reachable}:{self.grpc}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self._reachable}:{self.metrics}/metrics"

    @property
    def _reachable(self) -> str:
        """The host to connect to: loopback where the server listens on every address."""
        host = _EVERYWHERE.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process that cannot be mistaken for a later one of its number.

    Attributes:
        pid: Its number.
        began: When it began, in the kernel's clock ticks since boot; 0 where that is unknown.
    """

    pid: int
    began: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process that has this number now."""
        return cls(pid=pid, began=began(pid) or 0)

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return self.pid > 0 and began(self.pid) == self.began


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Once that a server, or one of its models, died and was started again.

    Attributes:
        at: When, in seconds since the epoch.
        what: What died, as in ``Triton`` or ``the model 'vgg'``.
        how: How it ended, as in ``by SIGKILL``.
    """

    at: float
    what: str
    how: str

    def __str__(self) -> str:
        """Return it as a clause."""
        return f"{self.what} ended {self.how}"


@dataclass(frozen=True, kw_only=True)
class ServerNote:
    """A server that repo-builder started.

    Attributes:
        server: Triton's process, which leads its group; None between two starts of it.
        keeper: The process that starts it again, or that waits for it in the foreground.
        detached: Whether it was left running.
        since: When it was started first, in seconds since the epoch.
        loaded: When it read its repository last, likewise.
        runtime: ``embedded`` or ``container``.
        repository: The model repository.
        models: Models that were named; empty means all.
        endpoints: Where it listens.
        polls: Whether it looks for new models by itself.
        restricted_key: What opens model control and the administration of shared memory; None where all may use them.
        backends: Backends that serve, and whose they are: ``native`` or ``embedded``.
        mps: The CUDA MPS that its processes are to use, as ``Mps.to_dict`` gives it.
        arguments: What ``serve.start`` was given, for another start.
        restarts: The latest times that something died and was started again.
        problem: What keeps it from serving now.
        exit_code: Its exit code where it ended before it was ever ready.
    """

    server: Process | None
    keeper: Process
    detached: bool
    since: float
    loaded: float
    runtime: str
    repository: Path
    models: tuple[str, ...] = ()
    endpoints: Endpoints = Endpoints()
    polls: bool = False
    restricted_key: str | None = None
    backends: Mapping[str, str] = field(default_factory=dict)
    mps: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    restarts: tuple[Restart, ...] = ()
    problem: str | None = None
    exit_code: int | None = None

    @property
    def pid(self) -> int:
        """Triton's process, 0 between two starts of it."""
        return self.server.pid if self.server else 0

    def alive(self) -> bool:
        """Whether it runs, or will be started again."""
        return self.keeper.alive() or bool(self.server and self.server.alive())

    def serves(self, model: str) -> bool:
        """Whether a model of its repository is one of those that it was to serve."""
        return not self.models or model in self.models

    def http_headers(self) -> dict[str, str]:
        """Return what a request over HTTP carries to what is closed to others."""
        return {KEY_NAME: self.restricted_key} if self.restricted_key else {}

    def grpc_headers(self) -> dict[str, str]:
        """Return the metadata that a call over gRPC carries to what is closed to others."""
        return {GRPC_HEADER: self.restricted_key} if self.restricted_key else {}


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/repo-builder``, by default ``~/.cache/repo-builder``; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "repo-builder"


def folder_of(repository: Path) -> Path:
    """Return the folder that holds the notes and the log of a repository's servers; it may not exist yet."""
    path = repository.resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return cache_folder() / "servers" / f"{path.name}-{digest}"


def notes() -> list[tuple[Path, ServerNote | None]]:
    """Return every note there is with its file; None is one that cannot be read."""
    return [(path, read(path)) for path in sorted((cache_folder() / "servers").glob("*/*.json"))]


def find(url: str) -> ServerNote | None:
    """Return the server of this user that answers at a ``host:port`` of HTTP or gRPC, None where there is none."""
    host, port = _split(url)
    for _, note in notes():
        if note is None or not note.alive() or port not in (note.endpoints.http, note.endpoints.grpc):
            continue
        theirs = _addresses(host)
        if theirs & _addresses(note.endpoints.host) or (note.endpoints.host in _EVERYWHERE and _all_here(theirs)):
            return note
    return None


def stale(repository: Path, model: str) -> list[ServerNote]:
    """Return the detached servers that go on serving an older ``model`` of a repository than the one that lies there.

    Servers that poll their repository are not among them. To be asked when the new model is in its place.
    """
    path = repository.resolve()
    try:
        placed = (path / model).stat().st_ctime
    except OSError:
        return []
    return [
        note
        for _, note in notes()
        if note is not None
        and note.detached
        and note.repository == path
        and note.serves(model)
        and not note.polls
        and note.loaded < placed
        and note.alive()
    ]


def read(path: Path) -> ServerNote | None:
    """Read a note, None where it is none."""
    try:
        value = parsed(json.loads, path.read_text(encoding="utf-8"))
        return ServerNote(
            **{
                **value,
                "server": Process(**value["server"]) if value["server"] else None,
                "keeper": Process(**value["keeper"]),
                "repository": Path(value["repository"]),
                "models": tuple(value["models"]),
                "endpoints": Endpoints(**value["endpoints"]),
                "restarts": tuple(Restart(**item) for item in value["restarts"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write(path: Path, note: ServerNote) -> None:
    """Replace a note's file; nobody but this user can read it, at no time.

    Raises:
        OutputError: It cannot be written.
    """
    with files.output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # of mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump({**dataclasses.asdict(note), "repository": str(note.repository)}, stream, indent=2)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def began(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None where there is none, or only its exit code is left.

    Field 22 of ``/proc/PID/stat``, see proc(5).
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        # the second field, the command, is in parentheses and may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def _split(url: str) -> tuple[str, int]:
    rest = url.partition("://")[2] or url
    host, _, port = rest.partition("/")[0].rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else -1


def _addresses(host: str) -> set[str]:
    """Return the addresses that a name stands for."""
    with contextlib.suppress(OSError, UnicodeError):
        return {str(item[4][0]) for item in socket.getaddrinfo(host, None)}
    return {host}


def _all_here(addresses: set[str]) -> bool:
    """Whether all of some addresses are this machine's: the key is sent to no other."""
    for address in addresses:
        with contextlib.suppress(OSError), socket.socket(_family(address), socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
            continue
        return False
    return True


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
