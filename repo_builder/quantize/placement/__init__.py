"""On which tensors of an fp32 graph Q/DQ stands, for one target; pure functions, onnx and numpy only.

    table.py      what a target's profile can say        profiles/   one table a target
    index.py      who makes and reads a tensor, subgraphs and functions counted; constants
    layers.py     which node is which layer, and whether the profile has an int8 form for it
    choose.py     which tensors carry Q/DQ, from the profile alone
    scales.py     their codes, from ranges (codes.py: one tensor's)
    weights.py    weights and biases as the target wants them
    lower.py      glue without an int8 kernel, written with those that there are
    float8.py     layers in fp8, apart from all that (dynamic.py: those that find their ranges as they run)
    blocked.py    linear layers with 4-bit weights, apart from all that (blocks.py: the weights)
    write.py      the placed graph (write_layer.py: an int8 layer, writer.py: its names)
    place.py      the order of these
    widen.py      channels of depthwise convolutions brought to what a kernel takes at once, when all else is done

How it is used::

    needed = wanted(model, plans, [profile("onnxruntime-cpu"), profile("tensorrt")])  # calibrate these tensors
    placed = place(model, plans, ranges, profile("onnxruntime-cpu"))
    placed.model  # Q/DQ in it; inputs, outputs and node names are those of ``model``
    placed.tensors  # tensor → scale, zero point, dtype, who reads it and how
    placed.layers  # one row a layer: asked, placed, and the reason where an int8 request ends in float

``model`` is the fp32 graph as ``quantize.prepare.prepare`` leaves it: nodes named, constants plain, BatchNorm
folded. It is never changed, and equal arguments give equal bytes.

Which tensors. Inputs of int8 layers; outputs of int8 layers where the target fuses an output's Q/DQ; and what
int8-capable nodes between them ("glue": Add, Concat, pools, Reshape ...) read and make. A node between int8 and
float is glue only where an int8 layer gains by it.

Who reads what. An int8 layer or glue reads a chosen tensor through its Q/DQ. Everything else, a *float reader* (a
float layer, a node of another domain, a subgraph, an output of the graph), reads the tensor itself where a float node
makes it, and through Q/DQ where an int8 node does, because there Q/DQ is what makes the node int8; then the codes
cover all that calibration saw, whatever its int8 readers' calibrator clips.
"""

from __future__ import annotations

from repo_builder.quantize.placement.place import place, wanted
from repo_builder.quantize.placement.placed import LayerOutcome, Placed, PlacedTensor, Wanted
from repo_builder.quantize.placement.profiles import PROFILES, profile
from repo_builder.quantize.placement.table import Profile

__all__ = ["PROFILES", "LayerOutcome", "Placed", "PlacedTensor", "Profile", "Wanted", "place", "profile", "wanted"]
