"""ONNX operators in torch, as far as networks that torch exports use them: what a fine-tuned graph is run with.

An operator takes its node's inputs (None for one that is left out) and attributes, and returns its outputs. Shapes and
other whole numbers that the graph computes stay on the CPU, so that reading them never waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from repo_builder.quantize.finetune.moving import MOVING, Attributes, Operator, given, numbers, together
from repo_builder.quantize.finetune.pooling import POOLS, spatial

_DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


def _plain(function: Callable[..., Tensor]) -> Operator:
    """Return an operator that has no attributes."""
    return lambda values, _: function(*together(*values))


def _over_axes(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    """Return a reduction, whose axes are an attribute or, in newer opsets, its second input."""

    def run(values: list[Tensor | None], attributes: Attributes) -> Tensor:
        x = given(values[0])
        axes = numbers(values[1]) if len(values) > 1 else list(attributes.get("axes", ()))
        if not axes and attributes.get("noop_with_empty_axes"):
            return x
        return function(x, axes or list(range(x.dim())), bool(attributes.get("keepdims", 1)))

    return run


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _cast(values: list[Tensor], attributes: Attributes) -> Tensor:
    return values[0].to(_DTYPES[attributes["to"]])


def _clip(values: list[Tensor | None], _: Attributes) -> Tensor:
    x, *bounds = (item for item in values)
    low, high = (*bounds, None, None)[:2]
    found = given(x)
    if low is not None:
        found = torch.maximum(*together(found, low))
    return found if high is None else torch.minimum(*together(found, high))


def _conv(values: list[Tensor | None], attributes: Attributes) -> Tensor:
    x, weight, bias = (*values, None)[:3]
    image, kernel = given(x), given(weight)
    window = spatial(image, kernel.shape[2:], attributes)
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[kernel.dim() - 3]
    padded = window.pad(image)
    return run(padded, kernel, bias, window.strides, window.symmetric, window.dilations, attributes.get("group", 1))


def _conv_transpose(values: list[Tensor | None], attributes: Attributes) -> Tensor:
    x, weight, bias = (*values, None)[:3]
    image, kernel = given(x), given(weight)
    window = spatial(image, kernel.shape[2:], attributes)
    if window.asymmetric or "output_shape" in attributes:
        raise ValueError("its padding has no form in torch")
    run = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[kernel.dim() - 3]
    more = list(attributes.get("output_padding", [0] * len(window.strides)))
    group = attributes.get("group", 1)
    return run(image, kernel, bias, window.strides, window.symmetric, more, group, window.dilations)


def _gemm(values: list[Tensor | None], attributes: Attributes) -> Tensor:
    a, b, c = (*values, None)[:3]
    left = given(a).T if attributes.get("transA") else given(a)
    right = given(b).T if attributes.get("transB") else given(b)
    product = left @ right
    if attributes.get("alpha", 1.0) != 1.0:
        product = product * attributes["alpha"]
    return product if c is None else product + c * attributes.get("beta", 1.0)


def _batch_norm(values: list[Tensor], attributes: Attributes) -> Tensor:
    x, gain, shift, mean, variance = values
    return functional.batch_norm(x, mean, variance, gain, shift, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(values: list[Tensor | None], attributes: Attributes) -> Tensor:
    x, gain, shift = (*values, None)[:3]
    axis, epsilon = attributes.get("axis", -1) % given(x).dim(), attributes.get("epsilon", 1e-5)
    return functional.layer_norm(given(x), given(x).shape[axis:], gain, shift, epsilon)


def _instance_norm(values: list[Tensor], attributes: Attributes) -> Tensor:
    return functional.instance_norm(values[0], weight=values[1], bias=values[2], eps=attributes.get("epsilon", 1e-5))


def _softmax(function: Callable[..., Tensor]) -> Operator:
    return lambda values, attributes: function(values[0], attributes.get("axis", -1))


def _gelu(values: list[Tensor], attributes: Attributes) -> Tensor:
    how = attributes.get("approximate", b"none")
    return functional.gelu(values[0], approximate=how.decode() if isinstance(how, bytes) else how)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Return an operator of any number of inputs."""

    def run(values: list[Tensor], _: Attributes) -> Tensor:
        found, *rest = together(*values)
        for item in rest:
            found = function(found, item)
        return found

    return run


_PLAIN: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Add": torch.add, "And": torch.logical_and, "Ceil": torch.ceil, "Cos": torch.cos,
    "Div": _div, "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor,
    "Greater": torch.gt, "GreaterOrEqual": torch.ge, "HardSwish": functional.hardswish,
    "Identity": lambda x: x, "Less": torch.lt, "LessOrEqual": torch.le, "Log": torch.log,
    "MatMul": torch.matmul, "Mish": functional.mish, "Mul": torch.mul, "Neg": torch.neg,
    "Not": torch.logical_not, "Or": torch.logical_or,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Pow": lambda x, y: torch.pow(x, y.to(x.dtype)), "Reciprocal": torch.reciprocal, "Relu": torch.relu,
    "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Softplus": functional.softplus, "Softsign": functional.softsign, "Sqrt": torch.sqrt, "Sub": torch.sub,
    "Tanh": torch.tanh, "Where": torch.where, "Xor": torch.logical_xor,
}  # fmt: skip
OPERATORS: dict[str, Operator] = {
    **MOVING,
    **POOLS,
    **{name: _plain(function) for name, function in _PLAIN.items()},
    **{
        name: _over_axes(function)
        for name, function in {
            "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
            "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
            "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
            "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
            "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
            "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep),
        }.items()
    },
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "CumSum": lambda values, _: torch.cumsum(values[0], numbers(values[1])[0]),
    "Dropout": lambda values, _: values[0],
    "Einsum": lambda values, attributes: torch.einsum(attributes["equation"].decode(), *together(*values)),
    "Elu": lambda values, attributes: functional.elu(values[0], attributes.get("alpha", 1.0)),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": lambda values, attributes: (
        values[0] * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5)
    ).clamp(0, 1),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda values, attributes: functional.leaky_relu(values[0], attributes.get("alpha", 0.01)),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Softmax": _softmax(torch.softmax),
}  # fmt: skip
