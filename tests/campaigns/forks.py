"""One trial in a fork of a warm process: libraries are loaded once, and whatever happens to a trial ends with it."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 20.0
MOST_KIB = 1_500_000  # of memory beyond the parent's own
MOST_SAID = 20_000  # bytes on stdout and stderr
_ADDRESS_SPACE = 16 << 30


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended.

    Attributes:
        code: Its exit code; None where it did not come to one.
        fault: What must not happen, in words that are equal for one sort of fault; empty where it did not.
        text: What was said about it.
    """

    code: int | None
    fault: str = ""
    text: str = ""


def trial(call: Callable[[], int | None], said: Path, *, limit_s: float = LIMIT_S) -> Outcome:
    """Run a call in a fork and judge how it ends.

    Args:
        call: What returns an exit code, as ``repo_builder.cli.run`` does.
        said: File that takes what it prints.
        limit_s: How long it may take.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        _child(call, said, write)
    os.close(write)
    ready, _, _ = select.select([read], [], [], limit_s)
    data = os.read(read, 1 << 16) if ready else b""
    os.close(read)
    if not ready:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    if not ready:
        return Outcome(code=None, fault=f"hang: over {limit_s:.0f} s", text=_tail(said))
    if not data:
        return Outcome(code=None, fault=f"died with {os.waitstatus_to_exitcode(status)}", text=_tail(said))
    found = json.loads(data)
    outcome = Outcome(code=found["code"], fault=found["fault"], text=found["text"] or _tail(said))
    if not outcome.fault and usage.ru_maxrss - before > MOST_KIB:
        return Outcome(code=outcome.code, fault=f"memory: over {MOST_KIB >> 10} MiB", text=outcome.text)
    return outcome


def _child(call: Callable[[], int | None], said: Path, write: int) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    out = os.open(said, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code, fault, text = 0, "", ""
    try:
        code = call() or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException as error:
        code, fault, text = 70, f"traceback: {type(error).__name__} in {_place(error)}", str(error)[:300]
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    if code == 70 and not fault:
        fault, text = "exit 70", _tail(said)
    if not fault and os.fstat(1).st_size > MOST_SAID:
        fault = f"said over {MOST_SAID} bytes"
    os.write(write, json.dumps({"code": code, "fault": fault, "text": text}).encode()[: 1 << 15])
    os._exit(0)


def _place(error: BaseException) -> str:
    """Return the innermost place in the package, which tells one sort of fault from another."""
    frames = [item for item in traceback.extract_tb(error.__traceback__) if "/repo_builder/" in item.filename]
    return f"{frames[-1].filename.rpartition('/repo_builder/')[2]}:{frames[-1].name}" if frames else "?"


def _tail(said: Path) -> str:
    try:
        return said.read_bytes()[-600:].decode(errors="replace")
    except OSError:
        return ""
