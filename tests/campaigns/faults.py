"""``perf`` while its server, the model's process or a load worker is killed or paused, and behind a faulty proxy.

Each run must end in time and in words: exit 0 with answers that were counted, or the exit code of what broke.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import server as servers
import subjects
from proxy import FAULTS, Proxy
from results import Result
from server import COMMAND, Server

PROTOCOLS = ("grpc", "http", "grpc-stream")
# When the fault comes: seconds after the accuracy has been measured; None is before that.
PHASES: dict[str, float | None] = {"start": None, "accuracy": 0.0, "warm-up": 0.3, "window": 2.0, "late": 3.4}
ACTS = ("kill server", "pause server", "blink server", "kill model", "pause model")
_LONGEST_S = 120.0
_FINE = (0, 1, 10, 11)  # measured; findings; the server's fault, told as such
_BLINK_S = 1.5


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of perf with one fault.

    Attributes:
        name: The fault, in words.
        act: What runs perf and makes the fault.
    """

    name: str
    act: Callable[[Faults], Perf]


class Perf:
    """A running ``repo-builder perf``."""

    def __init__(self, faults: Faults, *more: str, protocol: str = "grpc", url: str | None = None) -> None:
        server = faults.server()
        self._json = faults.folder / "trial.json"
        self._json.unlink(missing_ok=True)
        address = url or (server.http if protocol == "http" else server.grpc)
        usual = ["--timeout", "4", "--concurrency", "4", "--batch-size", "1", "--json", str(self._json)]
        where = ["--work", str(faults.subject.work), "--url", address, "--metrics-url", server.metrics]
        self.process = subprocess.Popen(
            [*COMMAND, "perf", "subject", "--protocol", protocol, *where, *usual, *more],
            cwd=faults.subject.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self.process.stdout is not None:
            self.lines.extend(self.process.stdout)

    def workers(self) -> list[int]:
        """Return the processes that make the load."""
        place = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with suppress(OSError):
            return [int(pid) for pid in place.read_text().split()]
        return []

    def wait_for(self, phase: str) -> None:
        """Wait until a phase of the measurement."""
        after = PHASES[phase]
        if after is None:
            time.sleep(0.5)
            return
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            if any(line.startswith("done") and "accuracy" in line for line in self.lines):
                break
            time.sleep(0.01)
        time.sleep(after)

    def end(self) -> tuple[int | None, str, dict[str, Any] | None]:
        """Return its exit code (None where it hung), what it said, and its JSON."""
        try:
            code: int | None = self.process.wait(_LONGEST_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        self._reader.join(5)
        document = json.loads(self._json.read_text()) if self._json.exists() else None
        return code, "".join(self.lines), document


class Faults:
    """The server that perf measures, started anew where a trial left it broken."""

    def __init__(self, folder: Path, rnd: random.Random) -> None:
        self.folder, self.rnd = folder, rnd
        self.subject = subjects.make(folder / "subject")
        self.proxies: list[Proxy] = []
        self._server: Server | None = None

    def server(self, *, fresh: bool = False) -> Server:
        """Return a running server."""
        if self._server is not None and (fresh or not self._server.stubs()):
            self.close()
        if self._server is None:
            self._server = servers.start(self.subject.repository)
        return self._server

    def close(self) -> None:
        """Stop the server."""
        if self._server is not None:
            servers.stop(self._server)
        self._server = None


def _on_server(phase: str, act: str) -> Callable[[Faults], Perf]:
    def trial(faults: Faults) -> Perf:
        server = faults.server(fresh=True)
        perf = Perf(faults, "--duration", "3", protocol=faults.rnd.choice(PROTOCOLS))
        perf.wait_for(phase)
        pids = server.stubs() if act.endswith("model") else [server.pid]
        for pid in pids:
            os.kill(pid, signal.SIGKILL if act.startswith("kill") else signal.SIGSTOP)
        if act.startswith("blink"):
            time.sleep(_BLINK_S)
            os.kill(server.pid, signal.SIGCONT)
        return perf

    return trial


def _on_worker(what: signal.Signals) -> Callable[[Faults], Perf]:
    def trial(faults: Faults) -> Perf:
        perf = Perf(faults, "--duration", "3", "--workers", "2", "--no-accuracy")
        deadline = time.monotonic() + 30
        while len(perf.workers()) < 2 and time.monotonic() < deadline and perf.process.poll() is None:
            time.sleep(0.02)
        time.sleep(1.0)
        for pid in perf.workers()[:1]:
            os.kill(pid, what)
        return perf

    return trial


def _behind_proxy(protocol: str, fault: str, phase: str) -> Callable[[Faults], Perf]:
    def trial(faults: Faults) -> Perf:
        server = faults.server()
        address = server.http if protocol == "http" else server.grpc
        after_s = 0.0 if phase == "start" else 2.5
        proxy = Proxy(address, fault, after_s=after_s, seed=faults.rnd.randrange(1 << 30))
        more = ["--no-accuracy"] if phase == "load" else []
        perf = Perf(faults, "--duration", "2.4", *more, protocol=protocol, url=proxy.address)
        faults.proxies.append(proxy)
        return perf

    return trial


def trials() -> list[Trial]:
    """Return every fault at every moment."""
    found = [Trial(name=f"{act} at {at}", act=_on_server(at, act)) for at, act in itertools.product(PHASES, ACTS)]
    found += [Trial(name=f"{what.name} to a worker", act=_on_worker(what)) for what in (signal.SIGKILL, signal.SIGSTOP)]
    ways = itertools.product(PROTOCOLS, FAULTS, ("start", "load"))
    return found + [
        Trial(name=f"{fault} over {protocol} from {phase}", act=_behind_proxy(protocol, fault, phase))
        for protocol, fault, phase in ways
    ]


def run(folder: Path, seconds: float, seed: int, *, count: int | None = None) -> Result:
    """Measure with faults for a time, in random order, each fault once before any comes twice.

    Args:
        folder: Scratch.
        seconds: Budget.
        seed: Seed of the order and of the faults' chances.
        count: Faults at the most.
    """
    begin, result, rnd = time.monotonic(), Result(), random.Random(seed)
    faults = Faults(folder, rnd)
    waiting: list[Trial] = []
    try:
        while result.figures["faults"] < (count or 10**9) and time.monotonic() - begin < seconds:
            if not waiting:
                waiting = rnd.sample(trials(), len(trials()))
            trial = waiting.pop()
            _judge(trial, faults, result)
    finally:
        faults.close()
    return result


def _judge(trial: Trial, faults: Faults, result: Result) -> None:
    perf = trial.act(faults)
    code, said, document = perf.end()
    while faults.proxies:
        faults.proxies.pop().close()
    result.figures["faults"] += 1
    result.figures["faults_proxied" if " over " in trial.name else "faults_of_processes"] += 1
    answered = sum(level["requests"] for level in document["levels"]) if document else 0
    if code is None:
        result.problem("hang", f"{trial.name}: {said[-300:]}")
    elif "Traceback (most recent call last)" in said:
        result.problem("traceback", f"{trial.name}: {said[-300:]}")
    elif code not in _FINE:
        result.problem(f"exit {code}", f"{trial.name}: {said[-300:]}")
    elif code == 0 and not answered:
        result.problem("exit 0 without an answer", f"{trial.name}: {said[-300:]}")
