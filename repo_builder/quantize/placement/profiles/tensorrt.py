"""TensorRT's explicit quantization, after "Q/DQ layer-placement recommendations" in NVIDIA's developer guide.

Layers' inputs and weights carry Q/DQ, with a zero point of 0 and int8 everywhere; an output does where an int8 layer
reads it. The residual operand of an Add carries Q/DQ, so that the sum becomes part of the convolution. Pools and
Concat between int8 layers run in int8. Biases carry none, and neither do a network's float ends.
"""

from __future__ import annotations

from repo_builder.quantize.placement.table import Glue, LayerForm, Profile

_MOVE = Glue(scale="input")

TENSORRT = Profile(
    name="tensorrt",
    activations="int8",
    layers={
        "Conv": LayerForm(),
        "ConvTranspose": LayerForm(),
        "Gemm": LayerForm(),
        "MatMul": LayerForm(),
    },
    glue={},
    stored_weights=False,
    widen_for_bias=False,
    residual_pairs=True,
)
