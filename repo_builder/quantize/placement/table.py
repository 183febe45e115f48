"""What a target's profile can say. A profile is a table of these rows; no target has code of its own in placement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# When a layer's output carries Q/DQ of its own: always; never (unless a reader asks for it); or where one Relu or Clip
# alone reads the output (the pair then stands behind that).
OutputPair = Literal["always", "never", "before a clip"]
# Which activations of a glue node have to be int8 already: every one; one of them; none (it is int8 where its rule or
# its readers ask for it).
Needs = Literal["all", "any"]
# The scale of a glue node's output: its own range's; its input's, because codes are only moved or picked; or the
# node is folded into the Q behind it, which clips as it does, so that no Q stands before it.
Scale = Literal["own", "input", "folded"]


@dataclass(frozen=True, kw_only=True)
class LayerForm:
    """The int8 form of an operator with a weight.

    Attributes:
        output: When its output carries Q/DQ.
        why_not: The reason to give where the operator has no int8 form; the other fields then play no part.
    """

    output: OutputPair = "never"
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Glue:
    """The int8 form of an operator without a weight.

    Attributes:
        needs: Which of its activations have to be int8 already.
        scale: Where its output's scale comes from.
        constants: Whether a constant operand is stored as codes.
        attributes: Attribute → value that the int8 form is limited to (a default counts as written).
        runs_float: It has no int8 kernel; Q/DQ on both sides of it lets its neighbours be int8.
    """

    needs: Needs = "all"
    scale: Scale = "own"
    constants: bool = False
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    runs_float: bool = False


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
        stored_weights: Weights are stored as int8 codes before DequantizeLinear and biases as int32 ones; otherwise
            weights stay float32 before QuantizeLinear and biases float32.
        widen_for_bias: A channel's weight scale grows until its int32 bias fits.
        residual_pairs: The other operand of an Add that takes an int8 convolution's output carries Q/DQ, so that the
            sum becomes part of the convolution, and the convolution's own output carries none.
        guard_float: Keep the runtime from making a float Conv or Gemm between Q/DQ int8 on its own.
    """

    name: str
    layers: Mapping[str, LayerForm]
    glue: Mapping[str, Glue]
    activations: Literal["uint8", "int8"]
    weight_steps: int = 127
    stored_weights: bool = True
    widen_for_bias: bool = True
    residual_pairs: bool = False
    guard_float: bool = False
