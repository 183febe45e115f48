"""Progress on stderr: timed steps that end with path, size and hash, and bars on long work.

stdout belongs to results. Colours and bars are drawn only where stderr is a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from repo_builder.core.files import sha256_of, tree_size

T = TypeVar("T")
_quiet = False  # whether steps are told


def stderr_console() -> Console:
    """Return a console on the present stderr (made anew, so that redirection is honoured)."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


class Step:
    """What a running step may say of itself before it ends."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Add a remark to the line that the step ends with."""
        self.notes.append(text)

    def wrote(self, path: Path, *, shown: Path | None = None) -> None:
        """Name what the step wrote: its path, size and, for a file, the first 12 digits of its sha256.

        Args:
            path: What was written.
            shown: Where it will be once its folder is in place.
        """
        digest = f"  sha256:{sha256_of(path)[:12]}" if path.is_file() else ""
        self.notes.append(f"{shown or path}  {human_bytes(tree_size(path))}{digest}")


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the steps of what is done inside: it is a part of one that is told as a whole."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Run a step: print its title, its time and its notes on stderr when it ends.

    Args:
        title: What is done, as in ``calibrate``.
    """
    current = Step()
    if _quiet:
        yield current
        return
    console = stderr_console()
    started = time.perf_counter()
    status = console.status(f"{escape(title)} …") if console.is_terminal else None
    if status:
        status.start()
    try:
        yield current
    except BaseException:
        if status:
            status.stop()
        console.print(f"[red]failed[/red] {time.perf_counter() - started:7.2f} s  {escape(title)}")
        raise
    if status:
        status.stop()
    seconds = time.perf_counter() - started
    text = escape(f"{title:<22} {'  '.join(current.notes)}")
    console.print(f"[green]done[/green]   {seconds:7.2f} s  {text}")


def stdout_console() -> Console:
    """Return a console for results: as wide as the terminal, or wide enough for tables where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def done(title: str, seconds: float, text: str) -> None:
    """Say what a step came to that was not run as one, as in many of a kind."""
    line = escape(f"{title:<22} {text}")
    stderr_console().print(f"[green]done[/green]   {seconds:7.2f} s  {line}")


def skipped(title: str, why: str = "up to date") -> None:
    """Say that a step was not needed."""
    text = escape(f"{title:<22}{why}")
    stderr_console().print(f"[dim]skip[/dim]             {text}")


def warn(sentence: str) -> None:
    """Say on stderr what the user should know although the work goes on."""
    stderr_console().print(f"[yellow]warning:[/yellow] {escape(sentence)}")


def bar(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """Iterate with a progress bar on stderr where that is a terminal, plainly elsewhere."""
    console = stderr_console()
    if not console.is_terminal:
        return items
    return track(items, description=title, total=total, console=console, transient=True)


def human_bytes(size: int) -> str:
    """Return a size as ``812 B``, ``4.1 kB`` or ``2.3 MB`` (powers of 1000)."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
