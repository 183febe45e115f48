"""What a build takes on a CPU: seconds, step by step, and the most memory that it held.

    python benchmarks/build_cost.py --out benchmarks/results/build_cost.json [--before TREE] [SUBJECT ...]

- ``resnet50``        ResNet-50 at 224 x 224 from its .onnx: 128 calibration samples, 64 at a time (the default)
- ``resnet50_torch``  the same from its torch module
- ``vgg``             the built-in recipe, its calibration beside that of another source tree, in turns

Each build is ``repo-builder build`` in a process of its own, on as many cores as ``--cores`` says; its steps are those
that it prints (a step's memory is looked at every 20 ms), its memory is what the kernel says that it held at most. TREE
is a checkout of before: 5378b3c is the last commit before ranges were found on the graph. Exit code 1 where a bar is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import cpu_zoo
import numpy as np
import onnx
import torch
from zoo_networks import seeded

HERE = Path(__file__).resolve().parent
COMMAND = (sys.executable, "-W", "ignore", "-m", "repo_builder", "build")
CALIBRATION, MOST_S, MOST_BYTES = 128, 120.0, 2 << 30
_STEP = re.compile(r"done +([0-9.]+) s  (.{22})")
_CALIBRATES = ("calibrate", "quantize + calibrate")  # the step's names, today and before
RECIPE = """\
name = "resnet50"

[model]
{source}
inputs = [{{ name = "x", dtype = "fp32", shape = [3, {size}, {size}] }}]
outputs = [{{ name = "y", dtype = "fp32", shape = [1000] }}]

[data]
source = "{folder}/samples.npz"
calibration = {calibration}
validation = 0.1
test = 0.1

[[quantize.layers]]
type = "Conv*"
precision = "int8"

[[quantize.layers]]
type = "Linear"
precision = "int8"

[measure]
task = "other"
"""


class Peaks(threading.Thread):
    """Looks at the memory of a process, and tells the most that it held between two questions.

    Args:
        pid: The process.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.most, self.ended = pid, 0, threading.Event()
        self.start()

    def run(self) -> None:
        """Look again and again."""
        while not self.ended.wait(0.02):
            try:
                pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
            except (OSError, IndexError):
                return
            self.most = max(self.most, pages * os.sysconf("SC_PAGE_SIZE"))

    def since(self) -> int:
        """Return the most bytes since the last call."""
        most, self.most = self.most, 0
        return most


def build(folder: Path, recipe: str, tree: Path | None = None) -> dict[str, Any]:
    """Build in a process of its own, nothing up to date; return its seconds, steps and most bytes.

    Args:
        folder: The working directory.
        recipe: A recipe's file or name.
        tree: Another source tree than this one.

    Raises:
        SystemExit: It failed.
    """
    paths = [str(tree or HERE.parent), str(HERE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [*COMMAND, recipe, "--target", "onnxruntime", "--force"]
    started = time.perf_counter()
    child = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    lines, steps = [], []
    peaks = Peaks(child.pid)
    for line in child.stderr or ():
        lines.append(line)
        done = _STEP.match(line)
        if done:
            steps.append({"step": done[2].strip(), "seconds": float(done[1]), "peak_bytes": peaks.since()})
    peaks.ended.set()
    _, status, used = os.wait4(child.pid, 0)
    seconds, text = time.perf_counter() - started, "".join(lines)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{text}\n{' '.join(command)}: exit code {child.returncode}")
    return {
        "seconds": round(seconds, 2),
        # not ru_maxrss: a child begins with what its parent held
        "peak_bytes": max([peaks.since(), *(int(item["peak_bytes"]) for item in steps)]),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "steps": steps,
    }


def resnet50(folder: Path, size: int, *, module: bool) -> str:
    """Write ResNet-50 with seeded weights, its samples and a recipe; return the recipe's path."""
    samples = cpu_zoo.data("resnet50", size, 40 + 2 * CALIBRATION + 80, 1)
    np.savez(folder / "samples.npz", x=samples)
    source = f'source = "{folder}/resnet50.onnx"'
    if module:
        network = seeded("resnet50", lambda count: torch.from_numpy(samples[:count]))
        torch.save(network.state_dict(), folder / "resnet50.pt")
        source = f'source = "zoo_networks:resnet50"\ncheckpoint = "{folder}/resnet50.pt"'
    else:
        onnx.save(cpu_zoo.exported("resnet50", size), folder / "resnet50.onnx")
    recipe = folder / "resnet50.toml"
    recipe.write_text(RECIPE.format(source=source, size=size, folder=folder, calibration=CALIBRATION))
    return str(recipe)


def network(asked: argparse.Namespace, *, module: bool) -> dict[str, Any]:
    """Build ResNet-50 and hold it to its bars."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = resnet50(folder, asked.size, module=module)
        row = build(folder, recipe)
    return {
        **row,
        "size": asked.size,
        "calibration": CALIBRATION,
        "bars": {
            "under 2 minutes on 2 cores": row["seconds"] < MOST_S and len(asked.cores) <= 2,
            "calibrated under 2 GiB at batch 64": peak_of(row, _CALIBRATES) < MOST_BYTES,
        },
    }


def peak_of(row: dict[str, Any], steps: Sequence[str]) -> int:
    """Return the most bytes that a build held in some steps."""
    return max(item["peak_bytes"] for item in row["steps"] if item["step"] in steps)


def calibration_s(row: dict[str, Any]) -> float:
    """Return what calibration took of a build."""
    return sum(item["seconds"] for item in row["steps"] if item["step"] in _CALIBRATES)


def vgg(asked: argparse.Namespace) -> dict[str, Any]:
    """Build the built-in vgg in turns with another tree."""
    trees = {"now": None, **({"before": asked.before.resolve()} if asked.before else {})}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.turns):
            for name, tree in trees.items():
                found[name].append(build(Path(folder), "vgg", tree))
    row: dict[str, Any] = {
        name: {
            "calibration_s": [calibration_s(item) for item in rows],
            "seconds": [item["seconds"] for item in rows],
            "peak_bytes": max(item["peak_bytes"] for item in rows),
        }
        for name, rows in found.items()
    }
    if asked.before:
        now, before = (statistics.median(row[name]["calibration_s"]) for name in ("now", "before"))
        commit = _git(asked.before, "rev-parse", "HEAD")
        row = {**row, "before_commit": commit, "bars": {"calibration no slower than before": now <= before}}
    return row


def _git(tree: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(tree), *words], capture_output=True, text=True, check=False)  # noqa: S607
    return done.stdout.strip()


SUBJECTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "resnet50": lambda asked: network(asked, module=False),
    "resnet50_torch": lambda asked: network(asked, module=True),
    "vgg": vgg,
}


def main(arguments: Sequence[str]) -> int:
    """Build what the command line names; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("subjects", nargs="*", default=list(SUBJECTS), help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--before", type=Path, metavar="TREE", help="a checkout that vgg's calibration is held to")
    parser.add_argument("--cores", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--size", type=int, default=224, help="height and width of images")
    parser.add_argument("--turns", type=int, default=5, help="builds of vgg")
    parser.add_argument("--out", type=Path, help="write the result to this file; other subjects' rows stay")
    asked = parser.parse_args(arguments)
    os.sched_setaffinity(0, asked.cores)  # builds inherit it
    old = json.loads(asked.out.read_text(encoding="utf-8"))["rows"] if asked.out and asked.out.is_file() else {}
    rows, missed = dict(old), False
    for name in asked.subjects:
        facts = {"date": date.today().isoformat(), "commit": _git(HERE, "rev-parse", "HEAD"), **cpu_zoo.hardware()}
        rows[name] = {**facts, "cores": asked.cores, **SUBJECTS[name](asked)}
        print(name, json.dumps(rows[name]), flush=True)
        missed |= not all(rows[name].get("bars", {}).values())
        if asked.out:
            asked.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
