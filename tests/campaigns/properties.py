"""Every property of the suite with other random examples each time, in Hypothesis' ``campaign`` profile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from figures import ROOT
from results import Result

_EXAMPLES = re.compile(r"- (\d+) passing\b")  # "examples" or "test cases", as the version of Hypothesis calls them
_FAILED = re.compile(r"^FAILED (\S+)", re.MULTILINE)


def run(folder: Path, seconds: float, seed: int, *, count: int | None = None) -> Result:
    """Run the property tests again and again until the budget is spent.

    Args:
        folder: Scratch.
        seconds: Budget.
        seed: Seed of the first round.
        count: Rounds at the most.
    """
    begin, result, rounds = time.monotonic(), Result(), 0
    using = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "hypothesis" in path.read_text()]
    while rounds < (count or 10**9) and (left := seconds - (time.monotonic() - begin)) > 0:
        told = ["--hypothesis-show-statistics", f"--hypothesis-seed={seed * 1000 + rounds}", "-q"]
        environment = {**os.environ, "HYPOTHESIS_PROFILE": "campaign"}
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-m", "not gpu", *told, *using],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            said = process.communicate(timeout=left + 30)[0]
        except subprocess.TimeoutExpired:  # the budget is spent: a round that was cut short counts for nothing
            process.terminate()
            process.communicate()
            break
        rounds += 1
        result.figures["rounds"] += 1
        tried = examples(said)
        result.figures["examples"] += tried
        if not tried:
            result.problem("no example was tried", said[-2000:])
        for test in set(_FAILED.findall(said)):
            result.problem(test.partition("[")[0], said[-2000:])
        (folder / f"round{rounds}.txt").write_text(said)
    return result


def examples(said: str) -> int:
    """Return how many examples passed by Hypothesis' statistics, over all tests."""
    return sum(map(int, _EXAMPLES.findall(said)))
