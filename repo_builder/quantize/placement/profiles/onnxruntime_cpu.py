"""ONNX Runtime's CPU kernels (1.32; what runs in int8 was read from its optimized graphs, operator by operator).

It forms an int8 operator wherever DQ → operator → Q stands. Activations are uint8, because int8 ones run at fp32's
speed. MatMul and Gemm keep float outputs, which are faster and 1 to 5 dB better, but in front of a Relu or Clip: ONNX
Runtime takes the clip for a part of the layer, and a layer without Q behind that for a float one.
"""

from __future__ import annotations

import dataclasses

from repo_builder.core.environment import Saturation
from repo_builder.quantize.placement.table import Float8Form, Glue, LayerForm, Profile

_MOVE = Glue(one_scale=True)  # runs on codes as they are
_LOOKUP = Glue()  # a table of 256 entries
_CLIP = Glue(pairs="output")

ONNXRUNTIME_CPU = Profile(
    name="onnxruntime-cpu",
    activations="uint8",
    layers={
        "Conv": LayerForm(output="int8"),
        "Gemm": LayerForm(output="int8 before a clip"),
        "MatMul": LayerForm(output="int8 before a clip"),
        "ConvTranspose": LayerForm(why_not="ONNX Runtime has no int8 ConvTranspose on the CPU"),
    },
    glue={
        "Add": Glue(operands="all", constants=True),
        "Mul": Glue(operands="all", constants=True, rescales=True),
        "MatMul": Glue(operands="all", pairs="inputs", asked=True),  # of two activations
        "Concat": Glue(operands="all", constants=True, needs="any"),
        "AveragePool": Glue(),
        "GlobalAveragePool": Glue(shrinks=True),
        "LeakyRelu": _LOOKUP,
        "Sigmoid": _LOOKUP,
        "Div": Glue(operands="all", constants=True, rescales=True, lowered="reciprocal"),
        "HardSigmoid": Glue(lowered="hard sigmoid"),
        "HardSwish": Glue(lowered="hard swish"),
        "Relu": _CLIP,
        "Clip": _CLIP,
        "DepthToSpace": _MOVE,
        "Expand": _MOVE,
        "Flatten": _MOVE,
        "Gather": _MOVE,
        "Identity": _MOVE,
        "MaxPool": _MOVE,
        "Reshape": _MOVE,
        "Resize": Glue(one_scale=True, attributes={"mode": "nearest"}),
        "Slice": _MOVE,
        "Split": _MOVE,
        "Squeeze": _MOVE,
        "Tile": _MOVE,
        "Transpose": _MOVE,
        "Unsqueeze": _MOVE,
    },
    fuses_bias=True,
    channels_at_once=16,
    image_channels_at_once=4,
    guard_float=True,
    dynamic=True,
    # All compute in float what Q/DQ has rounded: their accuracy is fp8's, their time is not.
    float8=dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), Float8Form()),
)

_SATURATES = "the CPU adds pairs of 8-bit products in 16 bits that would saturate (no VNNI)"


def for_cpu(saturation: Saturation) -> Profile:
    """Return the profile for a CPU.

    Args:
        saturation: ``none`` where the CPU adds 8-bit products in 32 bits (VNNI, Arm). Where it adds pairs of them in
            saturating 16 bits (AVX2 without VNNI): ``7 bits`` gives weights codes to ±63, of which no pair saturates
            (2 × 255 × 63 < 2**15) and which cost 2 to 7 dB; ``float`` leaves every layer float.
    """
    if saturation == "7 bits":
        return dataclasses.replace(ONNXRUNTIME_CPU, weight_steps=63)
    if saturation == "float":
        layers = {kind: LayerForm(why_not=_SATURATES) for kind in ONNXRUNTIME_CPU.layers}
        return dataclasses.replace(ONNXRUNTIME_CPU, layers=layers)
    return ONNXRUNTIME_CPU
