"""From an fp32 graph to what each of its layers is to be, and what its tensors hold on real data.

    rules.py        which layer gets which precision (pure)        layers.py   what a graph's layers are called in them
    prepare.py      a graph from anywhere, made ready: nodes named, constants plain, BatchNorm folded
    calibrators.py  which range an int8 scale covers (numpy)
    finders.py      back ends: who finds a range (ours; modelopt.py, pytorch_quantization.py, plugged.py)
    observe.py      the graph runs in ONNX Runtime, and its tensors stream by
    calibrate.py    ranges of all tensors and weights (ranges.py is what they are, store.py the file that keeps them)
    compensate.py   codes of int4 weights that make up for each other's rounding, where a rule says ``gptq``
    choosing.py     which calibrator each tensor gets where a rule says ``best``; judge.py: what outputs keep of a form
    repair/         what is done to a network so that int8 loses less
    placement/      which tensors carry Q/DQ, for each target
    noise.py        signal to noise of each lowered layer
    table.py        the per-layer table

Importing this package imports neither torch nor a back end nor ONNX Runtime.
"""

from __future__ import annotations

from repo_builder.quantize.finders import BACKENDS
from repo_builder.quantize.rules import LayerPlan, plan

__all__ = ["BACKENDS", "LayerPlan", "plan"]
