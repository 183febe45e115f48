"""Builds that are killed: SIGKILL at the n-th file-system event, or at a random moment, some beside a second writer.

After each kill the repository must be valid and hold a model that was asked for once, whole; the next build must make
what is asked for now, and sweep what the killed one left.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import subjects
from results import Result

from repo_builder import cli

_EVENTS = frozenset({
    "open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir",
    "os.symlink", "os.truncate", "os.utime", "shutil.copyfile", "shutil.copystat", "shutil.copytree", "shutil.rmtree",
    "tempfile.mkdtemp", "tempfile.mkstemp", "ctypes.call_function",
})  # fmt: skip
_NOT_OURS = ("site-packages", "/proc", "/sys", "/usr/", "/dev/")
_ANY = ["--accept-departure"]  # how good a model is is not the question here
# What a build may be asked for; each makes another model.
VARIANTS: dict[str, list[str]] = {
    "max": [],
    "percentile": ["--set", 'quantize.layers.0.input={calibrator="percentile",percentile=90.0}'],
    "fp32": ["--set", "quantize.layers.0.precision=fp32"],
}
_STYLES: dict[str, Callable[[random.Random], list[str]]] = {
    "plain": lambda _: [],
    "force": lambda _: ["--force"],
    "next": lambda rnd: ["--version", "next", "--keep-versions", str(rnd.choice([1, 2, 3]))],
    "next, force": lambda _: ["--version", "next", "--keep-versions", "3", "--force"],
}
_HANG_S = 120.0


class Trap:
    """An audit hook that kills its process at the n-th event that concerns a file of ours."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.seen = 0
        self.armed = False
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count an event."""
        if not self.armed or event not in _EVENTS:
            return
        path = str(arguments[0]) if arguments else ""
        if path.endswith((".py", ".pyc")) or any(part in path for part in _NOT_OURS):
            return
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


_TRAP: list[Trap] = []


def start(arguments: list[str], *, at: int | None = None, log: str = "log") -> int:
    """Run the command line in a fork, to be killed at an event; return the fork's process id."""
    if not _TRAP:
        _TRAP.append(Trap())
    if pid := os.fork():
        return pid
    code = 99
    try:
        os.setsid()
        out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        _TRAP[0].at, _TRAP[0].armed = at, True
        code = cli.run(arguments)
        _TRAP[0].armed = False
        Path(f"{log}.events").write_text(str(_TRAP[0].seen))
        sys.stdout.flush()
    finally:
        os._exit(code)


def end(pid: int, *, after_s: float | None = None) -> int | str:
    """Wait for a fork, or kill it after a time; return its exit code, -9 where it was killed, or ``hang``."""
    begin = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        waited = time.monotonic() - begin
        if (after_s is not None and waited > after_s) or waited > _HANG_S:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            return "hang" if waited > _HANG_S else os.waitstatus_to_exitcode(status)
        time.sleep(0.002)


def outputs(model: Path) -> str:
    """Return a digest of a model's outputs, found in a fork: no session's threads may be where builds are forked."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            import onnxruntime

            session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
            found = session.run(None, {"x": subjects.values(64, subjects.FEATURES, seed=3)})[0]
            text = hashlib.sha256(np.round(found, 3).tobytes()).hexdigest()
        except BaseException as error:
            text = f"cannot be run: {error}"[:200]
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    text = os.read(read, 4096).decode()
    os.close(read)
    os.waitpid(pid, 0)
    return text


@dataclass
class Campaign:
    """One run of kills in a folder.

    Attributes:
        rnd: Decides what is killed when.
        known: Variant → digest of its model's outputs.
        events: File-system events of a whole build.
        result: What was found.
    """

    rnd: random.Random
    known: dict[str, str]
    events: int
    result: Result
    repository: Path = Path("area/repo")

    def one(self) -> None:
        """Kill one build, judge what it left, build again and judge that."""
        rnd, name = self.rnd, self.rnd.choice(list(VARIANTS))
        base = ["build", "r.toml", "--work", "w", "--output", str(self.repository), *_ANY]
        style = rnd.choice([*_STYLES, "compile"])
        arguments = [*base, *VARIANTS[name], *(_STYLES[style](rnd) if style in _STYLES else [])]
        if style == "compile" and Path("w/subject/onnx/manifest.json").exists():
            more = ["--output", str(self.repository), "--force", "--version", rnd.choice(["next", "replace"]), *_ANY]
            arguments = ["compile", "w/subject", *more]
        other = ["build", "r.toml", "--work", "w2", "--output", str(self.repository), "--force", *_ANY]
        second = start([*other, *VARIANTS[rnd.choice(list(VARIANTS))]], log="log2") if rnd.random() < 0.15 else None
        if rnd.random() < 0.7:
            at: float = rnd.randint(1, self.events)
            code = end(start(arguments, at=int(at)))
        else:
            at = round(rnd.uniform(0.01, 2.0), 3)
            code = end(start(arguments), after_s=at)
        told = f"{style} {name} at {at}: {code}"
        if second and (other_code := end(second)) != 0:
            self.result.problem("the second writer failed", f"{told}: {other_code}: {_said('log2')}")
        self.result.figures["builds"] += 1
        self.result.figures["kills"] += code == -9
        if code not in (0, -9):
            self.result.problem("a build that was not killed failed", f"{told}: {_said('log')}")
        self._judge(told)
        self._build_again(base, name, told)

    def _judge(self, told: str) -> None:
        folder = self.repository / "subject"
        if not folder.exists():
            return
        if end(start(["validate", str(self.repository), "--strict"], log="log3")) != 0:
            self.result.problem("the repository is not valid", f"{told}: {_said('log3')}")
        for model in sorted(folder.glob("*/model.onnx")):
            listed = json.loads((model.parent / "manifest.json").read_text())["files"].get("model.onnx")
            if listed != hashlib.sha256(model.read_bytes()).hexdigest():
                self.result.problem("a model is not what its manifest lists", told)
            if (got := outputs(model)) not in self.known.values():
                self.result.problem("a model that nobody asked for", f"{told}: {got}")

    def _build_again(self, base: list[str], name: str, told: str) -> None:
        code = end(start([*base, *VARIANTS[name]]))
        placed = sorted((self.repository / "subject").glob("*/model.onnx"), key=lambda path: int(path.parent.name))
        if code != 0:
            self.result.problem("the next build failed", f"{told}: {code}: {_said('log')}")
        elif not placed or outputs(placed[-1]) != self.known[name]:
            self.result.problem("the next build is not what was asked for", told)
        left = [path for root in ("area", "w") for path in Path(root).rglob(".*") if path.name != ".cache"]
        if left:
            self.result.problem("litter after the next build", f"{told}: {left[:3]}")


def run(folder: Path, seconds: float, seed: int, *, count: int | None = None) -> Result:
    """Kill builds for a time.

    Args:
        folder: Scratch.
        seconds: Budget.
        seed: Seed of what is killed when.
        count: Builds at the most.
    """
    import repo_builder.flows.build.forms  # noqa: F401 - once, and not in every fork

    begin = time.monotonic()
    subjects.make(folder, built=False)
    os.chdir(folder)
    result = Result()
    known = {}
    for name, more in VARIANTS.items():
        whole = ["build", "r.toml", "--work", f"ref_{name}/w", "--output", f"ref_{name}/r", *more, "--force", *_ANY]
        code = end(start(whole))
        assert code == 0, f"the subject itself does not build: {code}: {_said('log')}"
        known[name] = outputs(Path(f"ref_{name}/r/subject/1/model.onnx"))
    assert len(set(known.values())) == len(VARIANTS), known
    events = int(Path("log.events").read_text())
    Path("area").mkdir()
    campaign = Campaign(rnd=random.Random(seed), known=known, events=events, result=result)
    while result.figures["builds"] < (count or 10**9) and time.monotonic() - begin < seconds:
        campaign.one()
    return result


def _said(log: str) -> str:
    return Path(log).read_text(errors="replace")[-300:]
