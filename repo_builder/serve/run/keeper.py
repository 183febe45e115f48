"""The process that keeps a detached server: it starts Triton, starts it again when it dies, and writes down how it is.

It is started with the path of the server's note and gets the ``Job`` on standard input. Its note is there before Triton
is, so that no server runs that nobody knows of. When it is killed Triton ends, too; SIGTERM ends both in good order.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from repo_builder.core import servers
from repo_builder.core.servers import Process, Restart, ServerNote
from repo_builder.serve.run import health
from repo_builder.serve.run.job import Job
from repo_builder.serve.run.process import Child
from repo_builder.serve.run.revival import Backoff, Models

_LOOK_S = 0.25
_LOOK_FIRST_S = 0.05  # until it is ready: one that dies before its keeper has seen that is taken for one that never was
_GRACE_S = 15.0
_KEPT_RESTARTS = 20


def main() -> None:
    """Keep the server whose note is named on the command line and whose job comes on standard input."""
    note_file, log = Path(sys.argv[1]), Path(sys.argv[2])
    text = sys.stdin.read()
    note = servers.read(note_file)
    if note is None or not text:  # whoever started this was killed meanwhile
        sys.exit(1)
    job = Job.from_json(text, os.environ)
    sys.exit(_Keeper(job, note_file, note, log).run())


class _Keeper:
    """Keeps one server."""

    def __init__(self, job: Job, note_file: Path, note: ServerNote, log: Path) -> None:
        self._job = job
        self._file = note_file
        self._log = log
        self._note = dataclasses.replace(note, keeper=Process.of(os.getpid()))
        self._asked = threading.Event()
        self._backoff = Backoff()

    def run(self) -> int:
        """Keep the server until it is to end, or ends before it was ever ready; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._write()
        try:
            first = self._once()
            if first is not None and not self._asked.is_set():
                self._write(exit_code=first, server=None)  # whoever started it reads why
                return 1
            while not self._asked.is_set():
                self._once()
        finally:
            self._job.clean_up()
            if self._note.exit_code is None:
                self._file.unlink(missing_ok=True)
        return 0

    def _end(self, _: int, __: FrameType | None) -> None:
        self._asked.set()

    def _once(self) -> int | None:
        """Run Triton once, and wait for the time of its next start; return its exit code if it was never ready."""
        self._job.set_out()
        try:
            child = Child(self._job.command, self._job.environment, log=self._log)
        except OSError as error:
            return self._failed(str(error), 127)
        self._write(server=Process.of(child.pid), loaded=time.time())
        was_ready, given_up = False, False
        try:
            was_ready, given_up = self._attend(child)
        finally:
            child.stop(_GRACE_S)
            self._job.clean_up()
        if self._asked.is_set() or given_up:
            return None
        if was_ready or self._backoff.count:
            self._failed(health.how_ended(child.exit_code), child.exit_code)
            return None
        return child.exit_code

    def _failed(self, how: str, code: int | None) -> int | None:
        """Say that Triton ended, and wait until it is to be started again."""
        delay = self._backoff.next()
        self._tell(Restart(at=time.time(), what="Triton", how=how), f"it is started again in {delay:g} s", server=None)
        self._asked.wait(delay)
        return code

    def _attend(self, child: Child) -> tuple[bool, bool]:
        """Look after Triton until it ends or is to end; return whether it was ever ready, and is given up."""
        ready = False
        models = Models(child.pid, self._job, self._note)
        while not self._asked.is_set() and child.wait(_LOOK_S if ready else _LOOK_FIRST_S) is None:
            if not ready:
                models.meet()
                ready = health.ready(self._note.endpoints.http_url, self._note.models)
                if ready and self._note.problem:
                    self._write(problem=None)
                continue
            event = models.look()
            if event is None:
                continue
            if event.restart is not None:
                self._tell(event.restart, event.next_step)
            elif event.problem != self._note.problem:
                self._write(problem=event.problem)
            if event.give_up:
                self._asked.wait(self._backoff.next())
                return True, True
        return ready, False

    def _tell(self, restart: Restart, next_step: str, **changes: object) -> None:
        text = f"{restart}; {next_step}"
        print(f"repo-builder: {text}", file=sys.stderr, flush=True)  # which is the log
        restarts = (*self._note.restarts, restart)[-_KEPT_RESTARTS:]
        self._write(restarts=restarts, problem=text, **changes)

    def _write(self, **changes: object) -> None:
        self._note = dataclasses.replace(self._note, **changes)  # type: ignore[arg-type]
        servers.write(self._file, self._note)
