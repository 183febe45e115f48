"""Where a network's time goes in ONNX Runtime, and what its own quantizer reaches on the same samples.

Shares are of ONNX Runtime's profile of the fp32 graph, one thread, one sample, the least of some runs of each node:
what convolutions and matrix products leave over, no int8 of them makes faster. ``quantize_static`` (QDQ, U8S8, per
channel, calibrated on the recipe's calibration samples) is timed against fp32 in turns, as every build times int8.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from repo_builder.compile.onnxruntime.speed import compare
from repo_builder.core.onnx_files import load
from repo_builder.quantize.prepare import prepare

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
_KERNEL = "_kernel_time"
_RUNS = 8
# operator, as ONNX Runtime calls it → what int8 makes faster; all else is "other"
_HEAVY = {
    "convolution": frozenset({"Conv", "FusedConv", "NhwcFusedConv"}),
    "matrix product": frozenset({"Gemm", "FusedGemm", "MatMul", "FusedMatMul"}),
}


def shares(path: Path, feed: Feed) -> dict[str, float]:
    """Return what of a model's time is convolutions, matrix products, and each of the largest other operators."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(_RUNS):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    least: dict[str, tuple[float, str]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            found = (float(event["dur"]), str(event["args"]["op_name"]))
            least[name] = min(least.get(name, found), found)
    spent: dict[str, float] = defaultdict(float)
    for time_us, operator in least.values():
        spent[next((kind for kind, group in _HEAVY.items() if operator in group), operator)] += time_us
    total = sum(spent.values()) or 1.0
    ordered = sorted(spent, key=lambda kind: -spent[kind])
    return {kind: round(spent[kind] / total, 3) for kind in ordered if kind in _HEAVY or spent[kind] >= total / 20}


def static(source: Path, calibration: Iterator[Feed], sizes: Mapping[int, Feed], folder: Path) -> tuple[Path, dict]:
    """Quantize a network with ONNX Runtime's own quantizer; return the file, and batch size → times fp32's speed.

    Args:
        source: The fp32 graph.
        calibration: Feeds of calibration samples.
        sizes: Batch size → inputs.
        folder: Where the file goes.
    """

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Feed | None:
            return next(calibration, None)

    plain, made = folder / "prepared.onnx", folder / "static.onnx"
    onnx.save(prepare(load(source)), plain)
    logging.disable(logging.WARNING)
    quantize_static(
        plain, made, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    logging.disable(logging.NOTSET)
    rows = compare(plain, made, {size: dict(feed) for size, feed in sizes.items()})
    return made, {row.batch_size: round(row.speedup, 3) for row in rows}
