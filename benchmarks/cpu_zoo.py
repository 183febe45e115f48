"""int8 on ONNX Runtime's CPU, network by network: fp32, quantize_static, this project's placement and its default.

    .venv/bin/python benchmarks/cpu_zoo.py --size 224 --out benchmarks/results/cpu_zoo.json [--merge] [NETWORK ...]

Rows are written as they are made; ``--merge`` keeps other networks' rows of a file of the same settings and machine.

Every network is made with seeded weights (``zoo_networks.py``), exported once and given, BatchNorm folded, to both:
``onnxruntime.quantization.quantize_static`` (QDQ, U8S8, per channel, all else as it comes) and ``placement.place`` with
a rule that asks int8 of every layer, channels fitted to the target's kernels as ``build`` does, calibrator max for
both; ``default`` is what ``build`` makes of that rule, which leaves layers in fp32 where int8 does not pay or the
outputs cannot bear it (``cpu_zoo_default.py``). Sessions run on one thread, in turns, anew in each round, and what
counts is the CPU time of the process; a ratio is the median over rounds of the ratios within a round. Signal to noise
is that of the outputs against fp32, optimizations on, on inputs that did not calibrate. Each row says which bars it
meets, the last lines who misses one, and the exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cpu_zoo_default
import cpu_zoo_rows
import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from zoo_networks import NETWORKS, seeded

from repo_builder.core.recipe import LayerRule, QuantizeSpec
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement import PROFILES, Placed, Profile, Wanted, place, wanted
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.weights import channel_axis
from repo_builder.quantize.placement.widen import fitted
from repo_builder.quantize.prepare import prepare
from repo_builder.quantize.ranges import Ranges, TensorRange, WeightRange
from repo_builder.quantize.rules import LayerPlan, plan

Feeds = Mapping[str, np.ndarray]
Load = TypeVar("Load", int, str)
_FLOAT_LAYERS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose"}
)
_INT8_LAYERS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})


def data(name: str, size: int, count: int, seed: int) -> np.ndarray:
    """Return samples of a network's input: smooth noise, so that neighbours are alike as in images and sound."""
    network, generator = NETWORKS[name], np.random.default_rng(seed)
    if network.tokens:
        return generator.integers(0, network.tokens, (count, *network.shape))
    shape = tuple(item or size for item in network.shape)
    values = generator.standard_normal((count, *shape)).astype(np.float32)
    for axis in range(2, len(shape) + 1):
        values = (values + np.roll(values, 1, axis) + np.roll(values, 2, axis)) / np.float32(np.sqrt(3))
    return values.astype(np.float32)


def exported(name: str, size: int) -> onnx.ModelProto:
    """Return a network as prepared ONNX with a free batch."""
    as_tensor = lambda count: torch.from_numpy(data(name, size, count, 1))  # noqa: E731
    module, stream = seeded(name, as_tensor), io.BytesIO()
    axes = {0: "n"} | {1 + axis: f"d{axis}" for axis in NETWORKS[name].moving}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (as_tensor(2),), stream, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": axes, "y": {0: "n"}},
        )  # fmt: skip
    return prepare(onnx.load_from_string(stream.getvalue()))


def session(model: onnx.ModelProto, *, optimize: bool = True, keep: Path | None = None) -> ort.InferenceSession:
    """Load a model on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def observe(model: onnx.ModelProto, needed: Iterable[str], batches: Sequence[Feeds]) -> dict[str, TensorRange]:
    """Return the least and largest values of tensors over batches."""
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    given, known = {item.name for item in model.graph.input}, {item.name for item in model.graph.output}
    names = [name for name in needed if name not in given]
    wider.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in known
    )
    runner, bounds = session(wider, optimize=False), {}
    for batch in batches:
        values = {**batch, **dict(zip(names, runner.run(names, dict(batch)), strict=True))} if names else dict(batch)
        for name, value in values.items():
            low, high = bounds.get(name, (np.inf, -np.inf))
            bounds[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return {
        name: TensorRange(low=low, high=high, amax=max(abs(low), abs(high)), calibrator="max")
        for name, (low, high) in bounds.items()
    }


def weight_ranges(model: onnx.ModelProto, plans: Sequence[LayerPlan]) -> dict[str, WeightRange]:
    """Return the largest absolute weight of each channel of the layers that are to be int8 or fp8."""
    index, names = Index(model), {item.name for item in plans if item.coded and item.weighted}
    found = {}
    for node in index.nodes:
        value = index.value(node.input[1]) if node.name in names else None
        if value is not None:
            others = tuple(axis for axis in range(value.ndim) if axis != channel_axis(node))
            found[node.name] = WeightRange(amax=np.abs(value).max(axis=others))
    return found


def ours(model: onnx.ModelProto, batches: Sequence[Feeds], profile: Profile) -> Placed:
    """Place a model by a rule that asks int8 of every layer."""
    plans = plan(list(find_layers(model)), QuantizeSpec(layers=(LayerRule(precision="int8"),)))
    needed: Mapping[str, Wanted] = wanted(model, plans, [profile])
    ranges = Ranges(tensors=observe(model, needed, batches), weights=weight_ranges(model, plans))
    return place(model, plans, ranges, profile)


def theirs(model: onnx.ModelProto, batches: Sequence[Feeds], folder: Path) -> onnx.ModelProto:
    """Quantize a model with ONNX Runtime's own quantizer."""

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Any:  # noqa: ANN401
            return next(self.left, None)

    onnx.save(model, folder / "fp32.onnx")
    logging.disable(logging.WARNING)
    quantize_static(
        folder / "fp32.onnx", folder / "static.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return onnx.load(folder / "static.onnx")


def in_turns(
    models: Mapping[str, onnx.ModelProto], feeds: Mapping[Load, Feeds], rounds: int, seconds: float
) -> dict[Load, dict[str, list[float]]]:
    """Return CPU seconds a run by load (a batch size, a shape) and form, one figure a round.

    Every round has sessions of its own, as where a session's memory comes to lie makes up to a fifth of its speed for
    as long as it lives. Who is first in a round is last in the next.
    """
    taken: dict[Load, dict[str, list[float]]] = {load: {name: [] for name in models} for load in feeds}
    repeats: dict[tuple[Load, str], int] = {}
    for turn in range(rounds):
        sessions = {name: session(model) for name, model in models.items()}
        order = [*sessions.items()][:: -1 if turn % 2 else 1]
        for load, given in feeds.items():
            for name, runner in order:
                runner.run(None, dict(given))
                if (load, name) not in repeats:
                    repeats[load, name] = max(1, round(seconds / max(1e-6, _once(runner, given, 1))))
                taken[load][name].append(_once(runner, given, repeats[load, name]))
    return taken


def _once(runner: ort.InferenceSession, feeds: Feeds, repeats: int) -> float:
    """Return CPU seconds a run over some runs."""
    started = time.process_time()
    for _ in range(repeats):
        runner.run(None, dict(feeds))
    return (time.process_time() - started) / repeats


def sqnr_db(exact: Sequence[np.ndarray], noisy: Sequence[np.ndarray]) -> float:
    """Return the signal-to-noise ratio, 200 dB where there is no noise."""
    signal = sum(float(np.square(item, dtype=np.float64).sum()) for item in exact)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(exact, noisy, strict=True))
    return 10 * float(np.log10(signal / noise)) if noise else 200.0


def measure(
    name: str, size: int, batch_sizes: Sequence[int], rounds: int, seconds: float, samples: int, keep: Path | None
) -> dict[str, Any]:
    """Measure one network: speed by batch size, signal to noise, and what runs in int8."""
    model = exported(name, size)
    batches = [{"x": data(name, size, 4, 100 + place)} for place in range(samples // 4)]
    held_out = [{"x": data(name, size, 4, 9000 + place)} for place in range(4)]
    joined = lambda feeds: np.concatenate([item["x"] for item in feeds])  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        profile = PROFILES["onnxruntime-cpu"]
        placed = ours(model, batches, profile)
        default = cpu_zoo_default.build(
            name,
            model,
            joined(batches),
            joined(held_out),
            Path(folder),
            most=max(batch_sizes),
            moving=NETWORKS[name].moving,
        )
        models = {
            "fp32": model,
            "static": theirs(model, batches, Path(folder)),
            "ours": fitted(placed.model, profile),
            "default": onnx.load(default.model),
        }
        if keep is not None:
            for kind, item in models.items():
                onnx.save(item, keep / f"{name}.{kind}.onnx")
        sessions = {kind: session(item, keep=Path(folder) / f"{kind}.opt.onnx") for kind, item in models.items()}
        kinds = {}
        for kind in models:
            operators = [node.op_type for node in onnx.load(Path(folder) / f"{kind}.opt.onnx").graph.node]
            kinds[kind] = [sum(item in group for item in operators) for group in (_INT8_LAYERS, _FLOAT_LAYERS)]
    outputs = {kind: [item.run(None, dict(feeds))[0] for feeds in held_out] for kind, item in sessions.items()}
    row: dict[str, Any] = {
        "network": name,
        "sqnr_db": {kind: round(sqnr_db(outputs["fp32"], outputs[kind]), 2) for kind in models if kind != "fp32"},
        "int8_and_float_layers": kinds,
        "left_float": {item.name: item.reason for item in placed.layers if item.placed != item.asked},
        "default": default.to_dict(),
        "batches": {},
    }
    taken = in_turns(models, {count: {"x": data(name, size, count, 7)} for count in batch_sizes}, rounds, seconds)
    for count, found in taken.items():
        row["batches"][str(count)] = cpu_zoo_rows.compared(count, found)
    return {**row, "bars": cpu_zoo_rows.bars(row)}


def hardware() -> dict[str, Any]:
    """Return what the figures depend on."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    flags = next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return {
        "cpu": model or platform.processor(),
        "int8_flags": sorted({"avx2", "avx512_vnni", "avx_vnni", "amx_int8"} & set(flags)),
        "onnxruntime": ort.__version__,
        "onnx": onnx.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def merged(path: Path, result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of an earlier result, by network; refuse those of other settings or another machine."""
    known = json.loads(path.read_text(encoding="utf-8"))
    differs = [key for key in ("size", "samples", "hardware") if known[key] != result[key]]
    if differs:
        raise SystemExit(f"{path} is of another {', '.join(differs)}: measure all networks again, without --merge")
    return {row["network"]: row for row in known["networks"]}


def main() -> int:
    """Measure what the command line names; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--size", type=int, default=224, help="height and width of images")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU time of one turn")
    parser.add_argument("--samples", type=int, default=32, help="calibration samples")
    parser.add_argument("--keep", type=Path, help="write the four models of each network to this folder")
    parser.add_argument("--out", type=Path, help="write the result to this file")
    parser.add_argument("--merge", action="store_true", help="keep the rows of other networks that are in the file")
    asked = parser.parse_args()
    result: dict[str, Any] = {"size": asked.size, "samples": asked.samples, "hardware": hardware()}
    rows = merged(asked.out, result) if asked.merge and asked.out and asked.out.is_file() else {}
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    for name in asked.networks:
        row = measure(name, asked.size, asked.batch, asked.rounds, asked.seconds, asked.samples, asked.keep)
        rows[name] = {**row, "commit": commit}
        sys.stderr.write(cpu_zoo_rows.line(rows[name]) + "\n")
        if asked.out:
            ordered = [rows[item] for item in NETWORKS if item in rows]
            asked.out.write_text(json.dumps({**result, "networks": ordered}, indent=1) + "\n", encoding="utf-8")
    told, missed = cpu_zoo_rows.summary([rows[item] for item in asked.networks])
    sys.stderr.write(told + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
