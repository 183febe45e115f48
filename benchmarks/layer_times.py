"""Where an engine's time goes: TensorRT's own account of every layer, averaged over runs at one batch size.

python benchmarks/layer_times.py BATCH RESULTS.json name=PLAN [name=PLAN ...]

A PLAN is a model.plan as ``repo-builder build`` and ``compile`` write it, here those of VGG7 in int8 and fp16.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tensorrt as trt
from gpu_facts import head

from repo_builder.compile.tensorrt import inspector as trt_inspector
from repo_builder.compile.tensorrt.plan import Plan, Session
from repo_builder.core import files

RUNS = 50


class Times(trt.IProfiler):  # type: ignore[misc]
    """Sums up what TensorRT reports."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.sums: dict[str, float] = {}

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Take one layer's time of one run."""
        self.sums[layer_name] = self.sums.get(layer_name, 0.0) + ms


def layers(plan: Plan, batch: int) -> list[dict[str, Any]]:
    """Return name, precision, kernel and microseconds of every layer that takes any time."""
    session = Session(plan, len(plan.profiles) - 1)
    session.set_shapes({item.name: (batch, *item.shape[1:]) for item in plan.inputs})
    for _ in range(20):
        session.enqueue()
    session.stream.synchronize()
    times = Times()
    session.context.profiler = times
    for _ in range(RUNS):
        session.enqueue()
        session.stream.synchronize()
    known = {item.name: item for item in trt_inspector.parse(plan.inspect())}
    rows = []
    for name, total in times.sums.items():
        item = known.get(name)
        row = {"layer": name, "us": round(1e3 * total / RUNS, 2)}
        rows.append(row | ({"type": item.kind, "precision": item.precision, "kernel": item.tactic} if item else {}))
    return [row for row in rows if row["us"] > 0]


def main() -> None:
    """Measure every plan."""
    batch, output = int(sys.argv[1]), Path(sys.argv[2])
    found = {}
    for argument in sys.argv[3:]:
        name, _, path = argument.partition("=")
        found[name] = layers(Plan.load(Path(path)), batch)
        print(name, round(sum(row["us"] for row in found[name]), 1))
        for row in found[name]:
            print(f"  {row['us']:8.2f}  {row['layer'][:60]}")
    files.write_json(output, {**head(), "batch": batch, "runs": RUNS, "engines": found})


if __name__ == "__main__":
    main()
