"""The TensorRT rows of the precision table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_measure import Power, latency_us
from placed_graph import options_for
from precision_rows import BATCHES, ENERGY_BATCH, TestData, load_data, scores

from repo_builder.compile.tensorrt import build as trt_build
from repo_builder.compile.tensorrt import graph as trt_graph
from repo_builder.compile.tensorrt import profiles as trt_profiles
from repo_builder.compile.tensorrt.plan import Plan, PlanRunner, Session
from repo_builder.compile.tensorrt.target import TensorRTTarget
from repo_builder.core import artifacts, codec, device
from repo_builder.core.artifacts import OnnxArtifact

ORDER = ("fp32", "fp16", "int8-", "mixed")
KEPT = (
    "build_seconds", "cached_tactics_bytes", "plan_bytes", "flags", "precision_counts", "precisions", "profiles",
    "tensorrt_version", "notes",
)  # fmt: skip


class StreamClock:
    """Marks in a session's stream."""

    def __init__(self, stream: device.Stream) -> None:
        self.stream = stream

    def mark(self) -> device.Event:
        """Put a mark into the stream."""
        event = device.Event(timed=True)
        event.record(self.stream)
        return event

    def between(self, start: device.Event, end: device.Event) -> float:
        """Return the GPU's time between two marks, milliseconds, and give them back."""
        elapsed = end.since(start)
        start.free()
        end.free()
        return elapsed

    def wait(self) -> None:
        """Wait until the stream is empty."""
        self.stream.synchronize()


class Graph:
    """One batch size of a plan as a CUDA graph, with page-locked memory on the host's side."""

    def __init__(self, session: Session, size: int) -> None:
        self.session = session
        shapes = {item.name: (size, *item.shape[1:]) for item in session.plan.inputs}
        whole = session.set_shapes(shapes)
        self._copies = [
            (item, int(np.prod(whole[item.name])) * item.dtype.numpy.itemsize) for item in session.plan.tensors
        ]
        self._host = {item.name: device.PinnedBuffer(count) for item, count in self._copies}
        session.enqueue()
        session.stream.synchronize()
        self._graph = device.captured(session.stream, session.enqueue)

    def alone(self) -> None:
        """Enqueue one run."""
        self._graph.launch(self.session.stream)

    def with_copies(self) -> None:
        """Enqueue one run with its copies."""
        self._copy(inputs=True)
        self.alone()
        self._copy(inputs=False)

    def _copy(self, *, inputs: bool) -> None:
        for item, size in self._copies:
            if item.is_input is inputs:
                ends = (self.session.buffers[item.name].handle, self._host[item.name].handle)
                target, source = ends if inputs else ends[::-1]
                kind = device.TO_DEVICE if inputs else device.TO_HOST
                device.copy(target, source, size, kind, self.session.stream)

    def free(self) -> None:
        """Give back the graph and the host's memory."""
        self._graph.free()
        for buffer in self._host.values():
            buffer.free()


def rows(folder: Path, model: str, data_dir: Path, cache: Path, power: Power) -> Iterator[dict[str, Any]]:
    """Build and measure every variant of a model."""
    data = load_data(model, data_dir)
    names = sorted((item.name for item in folder.iterdir()), key=lambda name: [not name.startswith(p) for p in ORDER])
    for name in names:
        artifact = artifacts.read(OnnxArtifact, folder / name)
        forms = [("", True), (" without TF32", False)] if name == "fp32" and model == "vgg7" else [("", True)]
        for suffix, tf32 in forms:
            base = {"model": model, "row": f"TensorRT {name}{suffix}"}
            try:
                yield {**base, **_row(artifact, data, power, cache, tf32=tf32)}
            except Exception as error:  # a row that fails says so, and the others go on
                yield {**base, "failed": f"{type(error).__name__}: {str(error)[:300]}"}


def _row(artifact: OnnxArtifact, data: TestData, power: Power, cache: Path, *, tf32: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if tf32:
            target = TensorRTTarget()
            options = options_for(artifact, target, place, cache)
            details = codec.plain(target.compile(artifact, place, options=options))
        else:
            details = _without_tf32(artifact, place, cache)
        plan_file = place / "model.plan"
        with PlanRunner(plan_file) as run:
            outputs = run({artifact.inputs[0].name: data.values})[artifact.outputs[0].name]
        return {
            "accuracy": scores(outputs, data),
            **_times(plan_file, power),
            **{name: details[name] for name in KEPT if name in details},
        }


def _without_tf32(artifact: OnnxArtifact, folder: Path, cache: Path) -> dict[str, Any]:
    import onnx

    options = options_for(artifact, TensorRTTarget(), folder, cache)
    precisions = trt_graph.read(onnx.load(str(options.graph)), options.layer_precisions)
    request = trt_build.BuildRequest(
        model=options.graph,
        precisions=precisions,
        profiles=trt_profiles.from_recipe(artifact.recipe),
        workspace_bytes=4 << 30,
        timing_cache=cache / "no-tf32.timing",
        tf32=False,
    )
    built = trt_build.build(request, print)
    (folder / "model.plan").write_bytes(built.plan)
    return {
        "plan_bytes": len(built.plan),
        "build_seconds": round(built.seconds, 3),
        "flags": [*built.flags, "not TF32"],
    }


def _times(plan_file: Path, power: Power) -> dict[str, Any]:
    session = Session(Plan.load(plan_file))
    clock = StreamClock(session.stream)
    found: dict[str, Any] = {"latency_us": {}, "with_copies_us": {}}
    for size in BATCHES:
        graph = Graph(session, size)
        found["latency_us"][str(size)] = latency_us(graph.alone, clock)
        found["with_copies_us"][str(size)] = latency_us(graph.with_copies, clock)
        if size == ENERGY_BATCH:
            found["energy"] = power.over(graph.alone, clock, size)
        clock.wait()
        graph.free()
    found["clocks_mhz"] = power.clocks_mhz()
    session.close()
    return found
