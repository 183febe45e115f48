"""What TensorRT's profiler says of a plan: how long each thing takes that the engine runs as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorrt as trt

from repo_builder.compile.tensorrt import inspector
from repo_builder.compile.tensorrt.plan import Plan, Session
from repo_builder.compile.tensorrt.profiles import choose
from repo_builder.compile.tensorrt.regions import Piece
from repo_builder.core.errors import CompileError
from repo_builder.core.tensors import Array

_WARM, _RUNS = 5, 20


class _Times(trt.IProfiler):  # type: ignore[misc]
    """Keeps the least time of each layer, which other work disturbs least."""

    def __init__(self) -> None:
        super().__init__()
        self.least_us: dict[str, float] = {}

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Take one layer's time of one run."""
        self.least_us[layer_name] = min(self.least_us.get(layer_name, ms * 1e3), ms * 1e3)


def measure(plan_file: Path, nodes: Sequence[str], feeds: Mapping[int, Mapping[str, Array]]) -> tuple[Piece, ...]:
    """Return the pieces of a plan that take time.

    Args:
        plan_file: The plan, built with detailed verbosity.
        nodes: Names of its graph's nodes, in the graph's order.
        feeds: Batch size → inputs.

    Raises:
        CompileError: The plan does not load, or takes no such batch.
    """
    plan = Plan.load(plan_file)
    told = {inspector.plain_name(item.name): item.nodes for item in inspector.parse(plan.inspect(), nodes)}
    found: dict[str, dict[int, float]] = {}
    for size, feed in feeds.items():
        for name, us in _one(plan, feed).items():
            found.setdefault(inspector.plain_name(name), {})[size] = us
    return tuple(
        Piece(name=name, nodes=told.get(name) or inspector.nodes_of(name, nodes), us=us) for name, us in found.items()
    )


def _one(plan: Plan, feed: Mapping[str, Array]) -> dict[str, float]:
    chosen = choose(plan.profiles, {item.name: tuple(feed[item.name].shape) for item in plan.inputs})
    if chosen is None:
        raise CompileError("no optimization profile of the plan covers the samples")
    session = Session(plan, chosen)
    try:
        for _ in range(_WARM):
            session(feed)
        times = _Times()
        session.context.profiler = times
        for _ in range(_RUNS):
            session.enqueue()
            session.stream.synchronize()
    finally:
        session.close()
    return times.least_us
