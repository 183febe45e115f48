"""Both of torch's ONNX exporters on the networks of ``zoo_networks.py``: writes the table of docs/exporters.md.

    python benchmarks/exporters.py [NAME ...]

Nodes are those of the graph that is placed, constants and BatchNorm folded. Seconds are CPU time of one export in a
process that has exported before.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import zoo_networks
from torch import Tensor

from repo_builder.core.errors import ExportError
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.export import choosing, comparing, torch_onnx
from repo_builder.quantize.prepare import prepare

DOCS = Path(__file__).resolve().parents[1] / "docs/exporters.md"
BEGIN, END = "<!-- table: benchmarks/exporters.py -->", "<!-- end -->"
HEAD = "| network | recorded: nodes | CPU s | torch.export: nodes | CPU s | layers | outputs | taken by auto |"
EXPORTERS = ("torchscript", "torch.export", "auto")


def row(name: str) -> str:
    """Return a network's row."""
    network = zoo_networks.NETWORKS[name]
    shape = tuple(size or (224 if name == "vit_small" else 64) for size in network.shape)
    torch.manual_seed(0)
    module = network.make().eval()
    x: Tensor = torch.randint(0, 100, (2, *shape)) if network.tokens else torch.randn(2, *shape)
    moving = tuple(-1 if axis in network.moving else size for axis, size in enumerate(shape))
    inputs = (TensorSpec(name="x", dtype=DType.INT64 if network.tokens else DType.FP32, shape=moving),)
    with torch.no_grad():
        outputs = (TensorSpec(name="y", dtype=DType.FP32, shape=tuple(module(x).shape[1:])),)
    cells, found, same = [], {}, []
    for exporter in EXPORTERS:
        started = time.process_time()
        try:
            made = torch_onnx.export(
                module, inputs=inputs, outputs=outputs, opset=17, path=Path(name), samples={"x": x.numpy()},
                exporter=exporter,
            )  # fmt: skip
        except ExportError as error:
            cells += [f"fails: {error.message}", "–"]
            continue
        spent = time.process_time() - started
        found[exporter] = made
        ready = prepare(made.model)
        axes = {"x": {0: "batch", **{axis + 1: f"x_{axis + 1}" for axis in network.moving}}}
        same.append(comparing.departs(module, ready, (x,), inputs, outputs, axes))
        cells += [str(choosing.nodes(ready)), f"{spent:.1f}"]
    layers = [choosing.layers(item.model) for item in found.values()]
    equal = f"{len(layers[0])}, the same" if layers[0] == layers[1] else f"{len(layers[0])} and {len(layers[1])}"
    agree = "equal" if not any(same) else "; ".join(filter(None, same))
    return f"| {name} | {' | '.join(cells[:4])} | {equal} | {agree} | {found['auto'].choice} |"


def main(names: list[str]) -> None:
    """Measure, print each row as it is known, and write it into the table; rows of others stay."""
    row("jsc")  # libraries are loaded
    rule = "|" + " --- |" * (HEAD.count("|") - 1)
    for name in names or list(zoo_networks.NETWORKS):
        text = DOCS.read_text(encoding="utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        table = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
        rows = {line.split("|")[1].strip(): line for line in table}
        rows[name] = row(name)
        print(rows[name], flush=True)
        kept = [rows[item] for item in zoo_networks.NETWORKS if item in rows]
        DOCS.write_text("\n".join([before + BEGIN, HEAD, rule, *kept, END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
