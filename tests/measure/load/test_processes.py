"""A process group's CPU time and memory are those of its processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from repo_builder.measure.load import processes

BUSY = """
import sys, time
data = bytearray(60_000_000)
while time.process_time() < 0.3: pass
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.communicate()


def test_a_group_has_its_processes_and_their_use(child: subprocess.Popen[str]) -> None:
    assert processes.members(child.pid) == [child.pid]
    assert os.getpid() not in processes.members(child.pid)
    assert processes.cpu_s([child.pid]) >= 0.25
    assert 60_000_000 < processes.memory_bytes([child.pid]) < 400_000_000


def test_what_is_gone_has_used_nothing() -> None:
    assert processes.members(1 << 22) == []
    assert processes.cpu_s([1 << 22]) == 0.0
    assert processes.memory_bytes([1 << 22]) == 0
