"""The process's surroundings: standard streams that are closed or full, a current folder that is gone, paths too long.

What the operating system refuses is no bug of ours and no mistake in a recipe: one sentence, exit code 12.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from pathlib import Path

from repo_builder.core.errors import OutputError

_HINTS = {
    errno.EACCES: "choose a path that you may use",
    errno.EDQUOT: "free some space there, or choose another folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "free some space there, or choose another folder",
    errno.EROFS: "choose a folder on a file system that is not read-only",
}
_STREAMS = (errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC)  # what a write without a name fails with


def prepare() -> None:
    """Make the standard streams safe to write to.

    A closed one gets /dev/null: else the next file that is opened takes its number, and what a library prints goes into
    that file. What a stream's encoding cannot show is shown as an escape, so that a name in a message never ends it.

    Raises:
        OutputError: Standard output is closed: results would be lost.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None and not _is_open(number):  # Python's mark of a stream that was closed when it began
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        hint = "send it to a file, or to /dev/null where it is not wanted"
        raise OutputError("is closed, and results go there", where="standard output", hint=hint)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def finish() -> OutputError | None:
    """Write out what standard output still holds; return the error where that cannot be done."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        mute()
    except OSError as error:
        mute()
        return OutputError(f"cannot be written ({error.strerror})", where="standard output", hint=_hint(error))
    return None


def mute() -> None:
    """Send standard output nowhere from now on, which keeps the interpreter's last flush quiet."""
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - lasts as long as the process


def refusal(error: OSError) -> OutputError | None:
    """Return an operating system's refusal as one sentence; None where it is about something else than files."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return OutputError(
            f"cannot be used ({reason})", where=_shortened(os.fsdecode(error.filename)), hint=_hint(error)
        )
    with suppress(OSError):
        if error.errno in _STREAMS:
            return OutputError(f"a file or standard output cannot be written ({reason})", hint=_hint(error))
        Path.cwd()
        return None
    return OutputError("the current folder is gone", hint="change to one that exists")


def _hint(error: OSError) -> str:
    return _HINTS.get(error.errno or 0, "check that path")


def _shortened(path: str, most: int = 120) -> str:
    return path if len(path) <= most else f"{path[: most // 2]}…{path[-most // 2 :]}"
