"""Models whose process died are loaded again, ever more seldom where that does not last."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from repo_builder.core.servers import Restart, ServerNote
from repo_builder.serve.run import control
from repo_builder.serve.run.job import Job
from repo_builder.serve.run.stubs import Dead, Watch

_LONGEST_S = 60.0
_LOOK_EVERY_S = 0.5


class Backoff:
    """How long to wait before something that died is started again: at once, then 1, 2, 4 ... 60 s.

    What has lasted for longer than the longest wait is taken for sound again.
    """

    def __init__(self) -> None:
        self.count = 0
        self._last = time.monotonic()

    def next(self) -> float:
        """Return the seconds to wait now."""
        if time.monotonic() - self._last > 2 * _LONGEST_S:
            self.count = 0
        delay = min(2.0 ** (self.count - 1), _LONGEST_S) if self.count else 0.0
        self.count += 1
        self._last = time.monotonic() + delay
        return delay


@dataclass(frozen=True, kw_only=True)
class Event:
    """What became of a server's models.

    Attributes:
        restart: What died.
        next_step: What is done about it, a clause.
        problem: What keeps the server from serving, as far as it is known; None where nothing does.
        give_up: Whether only a new start of the whole server helps.
    """

    restart: Restart | None = None
    next_step: str = ""
    problem: str | None = None
    give_up: bool = False


class Models:
    """Looks after the models of a server that is ready.

    Args:
        group: The server's process group.
        job: What runs there.
        note: The server's note.
    """

    def __init__(self, group: int, job: Job, note: ServerNote) -> None:
        self._watch = Watch(group, Path(job.root))
        self._explicit = job.explicit
        self._url = note.endpoints.http_url
        self._headers = note.http_headers()
        self._backoffs: dict[str, Backoff] = {}
        self._due: dict[str, float] = {}  # model → when it is to be loaded again
        self._handled: set[int] = set()
        self._looked = 0.0

    def meet(self) -> None:
        """Learn which process is whose, while the server is not ready yet."""
        self._watch.look()

    def look(self) -> Event | None:
        """Do what is due, and return what is new; None where nothing is."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return None
        self._looked = now
        fresh = [item for item in self._watch.look() if item.pid not in self._handled]
        if fresh:
            return self._died(fresh)
        due = [model for model, at in self._due.items() if at <= now]
        return self._load(due[0]) if due else None

    def _died(self, dead: list[Dead]) -> Event:
        self._handled |= {item.pid for item in dead}
        models = sorted({item.model for item in dead})
        what = f"the process of the model {', '.join(map(repr, models))}"
        restart = Restart(at=time.time(), what=what, how=dead[0].how)
        if not self._explicit or "" in models:
            return Event(restart=restart, next_step="Triton is started again", give_up=True)
        delays = {model: self._backoffs.setdefault(model, Backoff()).next() for model in models}
        self._due |= {model: time.monotonic() + delay for model, delay in delays.items()}
        return Event(restart=restart, next_step=f"it is loaded again in {max(delays.values()):g} s")

    def _load(self, model: str) -> Event:
        del self._due[model]
        try:
            control.reload(self._url, self._headers, model)
        except (OSError, control.Refused) as error:
            delay = self._backoffs[model].next()
            self._due[model] = time.monotonic() + delay
            return Event(problem=f"the model '{model}' is not loaded again: {error}; the next try is in {delay:g} s")
        waiting = ", ".join(map(repr, self._due))
        return Event(problem=f"the process of the model {waiting} ended; it is loaded again" if waiting else None)
