"""The process that a server with a CUDA MPS of its own runs under.

``main`` leads the server's process group: it starts the control daemon and tritonserver, and when tritonserver ends it
ends the daemon, removes its folder, and ends as tritonserver did. Whoever holds the server sees one process, as without
MPS. ``Mps.command`` is what runs it.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from repo_builder.serve.run.health import how_ended
from repo_builder.serve.run.mps import Mps
from repo_builder.serve.run.process import kill, shared_memory, tie_to_parent

_WORRYING = r"fail|error|not supported|exited with status [1-9]"
_UP_S, _DOWN_S = 10.0, 3.0


def main() -> None:
    """Run a command under an MPS of its own, as ``Mps.command`` says: program, folder of pipes, command."""
    control, pipes, *command = sys.argv[1:]
    code = _Leader(Mps(control=Path(control), pipes=Path(pipes), started=True)).run(command)
    if code < 0:  # by a signal: so does this process, without a core dump of its own
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL cannot be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


class _Leader:
    """The process that leads the group of a server with an MPS of its own."""

    def __init__(self, mps: Mps) -> None:
        self._mps = mps
        self._served: subprocess.Popen[bytes] | None = None
        self._asked = False  # to end
        self._ending = False

    def run(self, command: Sequence[str]) -> int:
        """Start the daemon and the command, wait for the command's end, and clear away; return its exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hand_on)
        try:
            daemon = self._start_daemon()
            reason = self._not_up(daemon)
            if reason is None and not self._asked:
                return self._serve(command, daemon)
            self._stop_daemon(daemon)
        except OSError as error:
            reason = str(error)
        finally:
            self._mps.clean_up()
        if self._asked:
            return 0
        _say(f"error: {reason}")  # health.failure knows these words
        return 1

    def _hand_on(self, number: int, _: FrameType | None) -> None:
        """Hand a signal on to the command, which ends in its own way."""
        self._asked = True
        if self._served is not None:
            self._served.send_signal(number)

    def _start_daemon(self) -> subprocess.Popen[bytes]:
        values = self._mps.environment()
        # It would number the devices anew, and tritonserver, which has it too, would then look for them by old numbers.
        # Names mean the same to both.
        if not values.get("CUDA_VISIBLE_DEVICES", "").startswith(("GPU-", "MIG-")):
            values.pop("CUDA_VISIBLE_DEVICES", None)
        with (self._mps.logs / "output").open("wb") as output:
            return subprocess.Popen(
                [str(self._mps.control), "-f"],
                env=values,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=tie_to_parent(),
            )

    def _not_up(self, daemon: subprocess.Popen[bytes]) -> str | None:
        """Wait until the daemon answers or the end is asked for; return why it will not."""
        deadline = time.monotonic() + _UP_S
        while not self._asked and self._mps.ask("get_server_list") is None:
            if daemon.poll() is not None:
                return f"the control daemon ended {how_ended(daemon.returncode)}: {self._last_words()}"
            if time.monotonic() > deadline:
                return f"the control daemon does not answer after {_UP_S:g} s: {self._last_words()}"
            time.sleep(0.05)
        return None

    def _serve(self, command: Sequence[str], daemon: subprocess.Popen[bytes]) -> int:
        self._served = subprocess.Popen(command, env=self._mps.environment(), preexec_fn=tie_to_parent())
        if self._asked:  # before there was anything to hand it on to
            self._served.terminate()
        threading.Thread(target=self._watch, args=(daemon,), daemon=True).start()
        # Not reaped yet, it counts as alive for its children: they are still there to be found.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._served.pid, os.WEXITED | os.WNOWAIT)
        regions = shared_memory(os.getpgrp())
        code = self._served.wait()
        # Clients that a crash left behind: the daemon would wait for them.
        kill(set(self._mps.processes()) - {daemon.pid, *(self._mps.ask("get_server_list") or ())})
        for region in regions:
            region.unlink(missing_ok=True)
        self._stop_daemon(daemon)
        for log in sorted(self._mps.logs.glob("*")) if code and not self._asked else ():
            if told := _last_line(log, _WORRYING):  # the logs go with the folder, and may say why
                _say(f"{log.name}: {told}")
        return code

    def _watch(self, daemon: subprocess.Popen[bytes]) -> None:
        code = daemon.wait()
        if not self._ending:
            _say(f"warning: the control daemon ended {how_ended(code)}; models may fail until the server is restarted")

    def _stop_daemon(self, daemon: subprocess.Popen[bytes]) -> None:
        self._ending = True
        if daemon.poll() is None:
            self._mps.ask("quit")
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(_DOWN_S)
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
        deadline = time.monotonic() + _DOWN_S
        while self._mps.processes() and time.monotonic() < deadline:  # the daemon's own child takes its leave
            time.sleep(0.05)

    def _last_words(self) -> str:
        return _last_line(self._mps.logs / "output") or _last_line(self._mps.logs / "control.log") or "it said nothing"


def _last_line(path: Path, words: str = r"\S") -> str:
    """Return the last line of a file that has one of some words, empty where there is none."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if re.search(words, line, re.IGNORECASE)), "")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"mps: {text}\n")
        sys.stderr.flush()
