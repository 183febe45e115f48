"""TensorRT's explicit quantization, after "Q/DQ layer-placement recommendations" in NVIDIA's developer guide.

Layers' inputs and weights carry Q/DQ with a zero point of 0 and int8 everywhere; an output does where an int8 layer
reads it. The residual operand of an Add carries Q/DQ, so that the sum becomes part of the convolution. MaxPool and
what moves values pass Q on by themselves; average pools and Concat want it in front of them, Concat with one scale.
Biases carry none, and neither do a network's float ends. Softmax, normalizations and activations stay float.
"""

from __future__ import annotations

from repo_builder.quantize.placement.table import Float8Form, Glue, LayerForm, Profile

_LAYER = LayerForm(output="int8 if read so")
_PASSES = Glue(pairs="none")  # TensorRT moves Q and DQ over it, or fuses it into the layer before
_POOL = Glue(pairs="inputs")

TENSORRT = Profile(
    name="tensorrt",
    activations="int8",
    layers={kind: _LAYER for kind in ("Conv", "ConvTranspose", "Gemm", "MatMul")},
    glue={
        "Add": Glue(operands="all", pairs="residual"),
        "MatMul": Glue(operands="all", pairs="inputs", asked=True),  # of two activations
        "AveragePool": _POOL,
        "GlobalAveragePool": _POOL,
        "Concat": Glue(operands="all", pairs="inputs", one_scale=True),
        "Clip": _PASSES,
        "Flatten": _PASSES,
        "Identity": _PASSES,
        "MaxPool": _PASSES,
        "Relu": _PASSES,
        "Reshape": _PASSES,
        "Slice": _PASSES,
        "Squeeze": _PASSES,
        "Transpose": _PASSES,
        "Unsqueeze": _PASSES,
    },
    stored_codes=False,
    float8={
        # both as TensorRT for RTX 1.7 compiles them: kernels of 5 x 5 in fp8, of 6 x 6 in fp32
        "Conv": Float8Form(largest_kernel=32),
        "ConvTranspose": Float8Form(why_not="TensorRT computes an fp8 ConvTranspose in fp32"),
        "Gemm": Float8Form(),
        "MatMul": Float8Form(),
    },
    # TensorRT has int4 weights from 10.0 on (its release notes), in forms that nothing here was tried on
    why_no_blocks="TensorRT takes int4 weights from version 10 on, and repo-builder writes them for ONNX Runtime alone",
)
