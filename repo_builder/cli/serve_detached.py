"""What ``repo-builder serve`` does with servers that were left running: start, show, restart, stop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repo_builder.core.errors import ServeError

if TYPE_CHECKING:
    from repo_builder.serve import Server, ServerNote


def start(server: Server, timeout_s: float) -> None:
    """Wait until a server that is left running is ready."""
    from repo_builder.core.progress import step

    with step("start triton") as current, _log_told(server):
        server.wait_ready(timeout_s)
        current.note(f"{urls(server)}, process {server.pid}, log {server.log}")


def status(repository: Path | None, *, as_json: bool) -> None:
    """Show the servers of one repository or of all."""
    from repo_builder.cli import serve_mps
    from repo_builder.serve import running
    from repo_builder.serve.run import detached
    from repo_builder.serve.run.mps import Mps

    notes = running(repository)
    states = [detached.state(item) for item in notes]
    uses = [Mps.from_dict(dict(item.mps)) if item.mps else None for item in notes]
    if as_json:
        values = [
            {
                **detached.to_dict(item),
                "ready": state.ready,
                "state": state.told,
                "mps": serve_mps.shown(mps, item.pid),
            }
            for item, state, mps in zip(notes, states, uses, strict=True)
        ]
        click.echo(json.dumps(values, indent=2))
        return
    if not notes:
        click.echo("no detached server is running", err=True)
        return
    rows: list[tuple[str, ...]] = [
        ("REPOSITORY", "MODELS", "RUNTIME", "BACKENDS", "PROCESS", "UP", "HTTP", "GRPC", "METRICS", "MPS", "STATE")
    ]
    for item, state, mps in zip(notes, states, uses, strict=True):
        rows.append((*_row(item), serve_mps.cell(mps, item.pid), state.told))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def stop(repository: Path | None) -> None:
    """Stop the server of one repository, or all."""
    from repo_builder.core.progress import step
    from repo_builder.serve import stop as stop_server

    for note in _meant(repository):
        with step("stop triton") as current:
            stop_server(note)
            current.note(f"process {note.pid}, {note.repository}")


def restart(repository: Path | None, timeout_s: float) -> None:
    """Start the server of one repository, or all, anew."""
    from repo_builder.serve import restart as restart_server

    for note in _meant(repository):
        server = restart_server(note)
        start(server, timeout_s)
        for name, reason in unavailable(server.note).items():
            click.echo(f"warning: the model '{name}' did not load: {reason}", err=True)


def unavailable(note: ServerNote) -> dict[str, str]:
    """Return the models that a server was to load and did not, with the reason; none where it does not say."""
    from repo_builder.serve.run import control

    try:
        return control.unavailable(note.endpoints.http_url, note.http_headers())
    except (OSError, control.Refused):
        return {}


def urls(server: Server) -> str:
    """Return where a server listens, for people."""
    return f"http {server.http_url}, grpc {server.grpc_url}, metrics {server.metrics_url}"


def _meant(repository: Path | None) -> list[ServerNote]:
    """Return the servers of one repository or of all, and say so where there are none."""
    from repo_builder.serve import running

    found = running(repository)
    if not found:
        others = sorted({str(item.repository) for item in running()}) if repository else []
        which = f" for {repository}" if repository else ""
        there = f"; those of {', '.join(others)} go on: name one, or --all" if others else ""
        click.echo(f"no detached server is running{which}{there}", err=True)
    return found


def _row(note: ServerNote) -> tuple[str, ...]:
    minutes = int(time.time() - note.since) // 60
    at = note.endpoints
    return (
        str(note.repository),
        ",".join(note.models) or "all",
        note.runtime,
        ",".join(f"{name}:{whose}" for name, whose in note.backends.items()) or "-",
        str(note.pid or "-"),
        f"{minutes // 60}h{minutes % 60:02d}m",
        *(at.http_url, at.grpc_url, at.metrics_url),
    )


@contextmanager
def _log_told(server: Server) -> Iterator[None]:
    """Show the last lines of a server's log file when it does not start; Triton's tables are left out."""
    try:
        yield
    except ServeError:
        lines = [line for line in server.tail() if line and line[0] not in "+|"]
        click.echo("\n".join(lines[-20:]), err=True)
        raise
