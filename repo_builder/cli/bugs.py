"""What no part of repo-builder foresaw: one line, exit code 70, and the traceback in a file that a report can carry."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

from repo_builder import __version__

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
_KEPT = 20


def sentence(error: BaseException, arguments: list[str]) -> str:
    """Keep the traceback of an error and say in one line what happened and where it was kept.

    Args:
        error: What nothing caught.
        arguments: The command line's.
    """
    said = " ".join(str(error).split())
    what = f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__
    kept = _keep(error, arguments)
    where = f"the traceback is in {kept}" if kept else "run it again with --debug for the traceback"
    return f"this is a bug in repo-builder ({what}) → report it: {where}"


def _keep(error: BaseException, arguments: list[str]) -> Path | None:
    """Write the traceback into the cache folder, else a temporary one; None where neither can be written."""
    text = "".join(traceback.format_exception(error))
    about = f"repo-builder {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - raises nothing
    for folder in (cache / "repo-builder" / "bugs", Path(tempfile.gettempdir())):
        with suppress(OSError, ValueError):
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(
                prefix=time.strftime("repo-builder-%Y%m%d-%H%M%S-"), suffix=".txt", dir=folder
            )
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(f"{about}{sys.executable}: {arguments}\n\n{text}")
            _forget_old(folder)
            return Path(name)
    return None


def _forget_old(folder: Path) -> None:
    for old in sorted(folder.glob("repo-builder-*.txt"))[:-_KEPT]:
        with suppress(OSError):
            old.unlink()
