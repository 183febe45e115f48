"""How long each layer of a model takes in ONNX Runtime, from its own profile on one thread of this CPU."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
import onnxruntime as ort

from repo_builder.compile.onnxruntime.became import Runs, optimized
from repo_builder.compile.timed import LayerTimes
from repo_builder.core.graphs import Q, layer_of
from repo_builder.core.tensors import Array

_RUNS = 12
_KERNEL = "_kernel_time"


def measure(model: Path, layers: Collection[str], feed: Mapping[str, Array]) -> LayerTimes:
    """Profile a model.

    Args:
        model: The ONNX file, placed or not.
        layers: The layers that are asked about.
        feed: Inputs of the model.
    """
    source, made = onnx.load(model, load_external_data=False), optimized(model)
    spent = _profile(model, feed)
    runs = Runs(made, source)
    found: dict[str, float] = defaultdict(float)
    for node in source.graph.node:
        name = layer_of(node)
        if name in layers and name is not None:
            run = runs.of(node)
            found[name] += spent.get(run.name, 0.0) if run is not None else 0.0
    quantizing = {
        node.output[0].removesuffix("/codes"): spent.get(node.name, 0.0)
        for node in made.graph.node
        if node.op_type == Q
    }
    return LayerTimes(layers=dict(found), quantizing=quantizing)


def _profile(model: Path, feed: Mapping[str, Array]) -> dict[str, float]:
    """Return node → microseconds."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="repo-builder-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for _ in range(_RUNS):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, float] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            node = name.removesuffix(_KERNEL)
            found[node] = min(found.get(node, float("inf")), float(event["dur"]))
    return found
