"""Which files code of the user's reads while it runs: what it opens, and the modules that it imports by then."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from repo_builder.core import files

_SITE = ("site-packages", "dist-packages", "__pycache__", "proc", "sys", "dev")
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_OWN = Path(__file__).resolve().parents[1]
_watchers: list[set[str]] = []
_hooked = False


def is_users(path: Path) -> bool:
    """Whether a file is neither of Python, of an installed package, of repo-builder, nor of the system's."""
    whole = path.resolve()
    system = any(part in _SITE for part in whole.parts)
    return not system and not any(whole.is_relative_to(item) for item in (*_INSTALLED, _OWN))


@contextlib.contextmanager
def reading() -> Iterator[dict[str, str]]:
    """Watch what is read; the mapping is filled in the end: file, relative to the current folder if below it → sha256.

    Files that a library opens without Python's knowledge are not seen.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_hear)  # there is no way to take it out again: it looks at one list
        _hooked = True
    opened: set[str] = set()
    before = set(sys.modules)
    _watchers.append(opened)
    found: dict[str, str] = {}
    try:
        yield found
    finally:
        _watchers.remove(opened)
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin:
            opened.add(origin)
    found.update(sorted(_hashes(opened).items()))


def unchanged(read: Mapping[str, str]) -> bool:
    """Whether files still have the content that ``reading`` found."""
    try:
        return all(files.sha256_of(Path(name)) == digest for name, digest in read.items())
    except OSError:
        return False


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watchers and isinstance(arguments[0], str | bytes):
        written = isinstance(arguments[1], str) and any(letter in arguments[1] for letter in "wax+")
        if not written:
            for item in _watchers:
                item.add(os.fsdecode(arguments[0]))


def _hashes(opened: set[str]) -> dict[str, str]:
    here, found = Path.cwd(), {}
    for name in opened:
        with contextlib.suppress(OSError, ValueError):
            path = Path(name).absolute()
            if path.is_file() and path.suffix != ".pyc" and is_users(path):
                shown = path.relative_to(here) if path.is_relative_to(here) else path
                found[str(shown)] = files.sha256_of(path)
    return found
