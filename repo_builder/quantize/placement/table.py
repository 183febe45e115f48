"""What a target's profile can say. A profile is a table of these rows; no target has code of its own in placement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# What an int8 layer's output is: int8, so that it carries Q/DQ; int8 where a reader asks for it; int8 where one Relu
# or Clip alone reads it (its Q/DQ then stands behind that); or float.
Output = Literal["int8", "int8 if read so", "int8 before a clip", "float"]
# How many of a glue node's activations have to be int8 already.
Needs = Literal["all", "any"]
# Which of a glue node's tensors carry Q/DQ on its account. ``output`` is for a node that is folded into the Q behind
# it, which clips as it does. ``residual`` is the operand of a sum that no int8 layer makes for this sum alone.
Pairs = Literal["inputs and output", "inputs", "output", "residual", "none"]

# How a glue node without an int8 kernel is written with others that have one (``lower.py``).
Lowering = Literal["", "reciprocal", "rescale", "hard sigmoid", "hard swish"]


@dataclass(frozen=True, kw_only=True)
class LayerForm:
    """The int8 form of an operator with a weight.

    Attributes:
        output: What its output is.
        why_not: The reason to give where the operator has no int8 form; ``output`` then plays no part.
    """

    output: Output = "float"
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Float8Form:
    """The fp8 form of an operator.

    Attributes:
        why_not: The reason to give where it has none.
        largest_kernel: The most values that a convolution's kernel may have in one channel; None for any.
    """

    why_not: str = ""
    largest_kernel: int | None = None


@dataclass(frozen=True, kw_only=True)
class Glue:
    """The int8 form of an operator without a weight: glue between int8 layers.

    Attributes:
        needs: How many of its activations have to be int8 already.
        pairs: Which of its tensors carry Q/DQ on its account.
        one_scale: Inputs and outputs share a scale, as codes are moved or picked.
        operands: ``first``: the first input is its activation and the others are settings; ``all``: every input.
        constants: A constant operand is stored as codes.
        rescales: With one constant above 0 it is no operator: its output are its input's codes with another step.
        lowered: How it is written for the target; empty for as it is.
        attributes: Attribute → value that the int8 form is limited to (ONNX's default where it is not written).
        asked: It is int8 only where a rule asks for it, never between other int8 nodes on its own.
        shrinks: It gives far less than it reads: it is int8 also where it ends a network, as no int8 node reads it.
    """

    needs: Needs = "all"
    pairs: Pairs = "inputs and output"
    one_scale: bool = False
    operands: Literal["first", "all"] = "first"
    constants: bool = False
    rescales: bool = False
    lowered: Lowering = ""
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    asked: bool = False
    shrinks: bool = False


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one target makes of Q/DQ.

    Attributes:
        name: The target, as in ``onnxruntime-cpu``.
        layers: Operator with a weight → its int8 form; others stay float.
        glue: Operator without a weight → its int8 form; others stay float.
        activations: ``uint8``: 255 steps over what the tensor holds, zero point 0 where it is never negative.
            ``int8``: 127 steps to either side of a zero point of 0.
        weight_steps: The largest weight code: 127, or 63 where sums of two 8-bit products saturate.
        stored_codes: Weights are stored as int8 codes before DequantizeLinear and biases as int32 ones, a channel's
            weight scale widened where its bias would overflow. Otherwise weights stay float32 before QuantizeLinear,
            those of linear layers as (outputs, inputs), and biases float32.
        fuses_bias: MatMul and the Add of a constant behind it become one Gemm, whose bias has to be int32, too.
        dynamic: Linear layers may find their input's range in every run.
        float8: Operator → its fp8 form; others stay float.
        why_no_blocks: The sentence that refuses weights of 4 bits in blocks; empty where the target has them.
        channels_at_once: Channels that int8 depthwise convolutions take at once; 0 where it does not matter.
        image_channels_at_once: Input channels that int8 convolutions of images take at once; 0 where it does not.
        guard_float: Keep the runtime from making a float Conv or Gemm between Q/DQ int8 on its own, and from taking a
            Relu in front of an fp8 Q for a part of it, as ONNX Runtime 1.32 does, whose E4M3 has negative codes, too.
    """

    name: str
    layers: Mapping[str, LayerForm]
    glue: Mapping[str, Glue]
    activations: Literal["uint8", "int8"]
    weight_steps: int = 127
    stored_codes: bool = True
    fuses_bias: bool = False
    why_no_blocks: str = ""
    channels_at_once: int = 0
    image_channels_at_once: int = 0
    guard_float: bool = False
    dynamic: bool = False
    float8: Mapping[str, Float8Form] = field(default_factory=dict)
