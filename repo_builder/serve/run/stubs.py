"""The processes in which Python-based models run, and those of them that died.

Triton goes on calling a model ready whose process is gone, and answers every request with an error. Such a process is
never waited for: it stays a zombie under tritonserver, while one that ended in an orderly way is gone at once.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from repo_builder.serve.run import health

_NAME = "triton_python_b"  # the kernel keeps 15 characters


@dataclass(frozen=True, kw_only=True)
class Dead:
    """A model's process that ended without being told to.

    Attributes:
        pid: Its number.
        model: Its model; empty where it was never seen alive.
        how: How it ended, as in ``by SIGKILL``.
    """

    pid: int
    model: str
    how: str


class Watch:
    """Looks at the model processes of a server, again and again.

    Args:
        group: The server's process group.
        root: The model repository, as the server was told it.
    """

    def __init__(self, group: int, root: Path) -> None:
        self._group = group
        self._root = root
        self._models: dict[int, str] = {}
        self._suspects: set[int] = set()

    def look(self) -> list[Dead]:
        """Return the processes that are dead now and were when this was called before."""
        zombies: dict[int, str] = {}
        for pid, state, code in _members(self._group):
            if state == "Z":
                zombies[pid] = how(code)
            elif pid not in self._models and (name := _model(pid, self._root)):
                self._models[pid] = name
        dead = [
            Dead(pid=pid, model=self._models.get(pid, ""), how=zombies[pid])
            for pid in sorted(self._suspects & set(zombies))
        ]
        self._suspects = set(zombies)
        return dead


def how(status: int | None) -> str:
    """Return how a process ended, from its wait status; None is unknown."""
    if status is None:
        return "for an unknown reason"
    return health.how_ended(os.waitstatus_to_exitcode(status))


def _members(group: int) -> list[tuple[int, str, int | None]]:
    """Return the stubs of a process group: number, state, and wait status where it is a zombie's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # it may end meanwhile
            head, _, tail = (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
            fields = tail.split()
            if head.partition("(")[2] == _NAME and fields[2] == str(group):
                found.append((int(process.name), fields[0], int(fields[49]) if fields[0] == "Z" else None))
    return found


def _model(pid: int, root: Path) -> str:
    """Return the model of a stub: its first argument is REPOSITORY/MODEL/VERSION/FILE."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return Path(os.fsdecode(words[1])).relative_to(root).parts[0]
    return ""
