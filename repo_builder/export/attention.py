"""Attention in the plain way while a module is exported: batch first, four dimensions, the scale behind the product.

What torch's exporter writes for it is the same arithmetic in another order: sequence first, batch and heads as one
dimension, the scale's root at both operands, sizes computed in the graph. Runtimes that fuse attention look for
softmax(scale · Q·Kᵀ + mask)·V over [batch, heads, length, size] (TensorRT: "multi-head attention fusion" in NVIDIA's
developer guide), and there is less to run where nothing fuses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_RESHAPE = 14  # the opset of its present form


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return ``softmax(scale · query·keyᵀ + mask)·value``; arguments are those of torch's scaled_dot_product_attention.

    Args:
        query: [..., length, size].
        key: [..., sources, size].
        value: [..., sources, size of a value].
        attn_mask: Added to the product, or true where it counts.
        dropout_p: Left out: a model that is exported is in eval mode.
        is_causal: Whether a place attends to earlier ones alone.
        scale: 1 / sqrt(size) where left out.
        enable_gqa: Whether several heads of queries share one of keys and values.
    """
    if enable_gqa:
        key, value = (item.repeat_interleave(query.size(-3) // item.size(-3), -3) for item in (key, value))
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    product = torch.matmul(query, key.transpose(-2, -1)) * factor
    if is_causal:
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        attn_mask = ones.tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
    if attn_mask is not None:
        product = product + attn_mask
    return torch.matmul(torch.softmax(product, -1), value)


class _Reshape(torch.autograd.Function):
    """A reshape of all but the first two dimensions, which exports as one node without arithmetic of sizes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *sizes: int) -> Tensor:  # noqa: ANN401 - torch's context
        return x.reshape(*x.shape[:2], *sizes)

    @staticmethod
    def symbolic(g: Any, x: Any, *sizes: int) -> Any:  # noqa: ANN401 - torch's graph
        return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor([0, -1, *sizes])))


def _reshape(x: Tensor, *sizes: int) -> Tensor:
    if torch.compiler.is_exporting():
        shape = torch.tensor([0, -1, *sizes])
        whole = (*x.shape[:2], *sizes)
        return torch.onnx.ops.symbolic("Reshape", (x, shape), dtype=x.dtype, shape=whole, version=_RESHAPE)
    result: Tensor = _Reshape.apply(x, *sizes)  # type: ignore[no-untyped-call]
    return result


@contextmanager
def plain_attention(module: nn.Module) -> Iterator[None]:
    """Let a module's attention run as ``attend`` for as long as this lasts.

    ``torch.nn.MultiheadAttention`` with biases or zeros appended to its keys, or with keys of another width than its
    queries, stays as torch has it.

    Args:
        module: The module, in eval mode.
    """
    before = functional.scaled_dot_product_attention
    changed = [item for item in module.modules() if type(item) is nn.MultiheadAttention and _usual(item)]
    for item in changed:
        item.forward = _forward_of(item)  # type: ignore[method-assign]
    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before
        for item in changed:
            del item.forward  # the instance's; the class's own shows again


def _usual(item: nn.MultiheadAttention) -> bool:
    return item._qkv_same_embed_dim and item.bias_k is None and not item.add_zero_attn


def _forward_of(item: nn.MultiheadAttention) -> Callable[..., Any]:
    own = item.forward

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if query.dim() != 3 or (need_weights and not average_attn_weights):
            return own(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        same = (key is query, value is key)
        query, key, value = (one if item.batch_first else one.transpose(0, 1) for one in (query, key, value))
        made = _projected(item, query, key, value, same)
        parts = [_reshape(one, item.num_heads, item.head_dim).transpose(1, 2) for one in made]
        mask = _mask(attn_mask, key_padding_mask, item.num_heads, query.dtype)
        product = torch.matmul(parts[0], parts[1].transpose(-2, -1)) * (1.0 / math.sqrt(item.head_dim))
        weights = torch.softmax(product if mask is None else product + mask, -1)
        result = item.out_proj(_reshape(torch.matmul(weights, parts[2]).transpose(1, 2), item.embed_dim))
        return result if item.batch_first else result.transpose(0, 1), weights.mean(1) if need_weights else None

    return forward


def _projected(
    item: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, same: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    """Return queries, keys and values; one product makes all three where they are of one tensor."""
    if all(same):
        return torch.split(functional.linear(query, item.in_proj_weight, item.in_proj_bias), item.embed_dim, -1)
    # cut one by one, as torch.export leaves a split of a constant to be computed in every run
    rows = [slice(place * item.embed_dim, (place + 1) * item.embed_dim) for place in range(3)]
    weights = [item.in_proj_weight[part] for part in rows]
    biases = [item.in_proj_bias[part] if item.in_proj_bias is not None else None for part in rows]
    given = (query, key, value)
    return tuple(functional.linear(one, weight, bias) for one, weight, bias in zip(given, weights, biases, strict=True))


def _mask(attn_mask: Tensor | None, padding: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to the product, [batch or 1, heads or 1, length or 1, sources]; None for nothing.

    Args:
        attn_mask: [length, sources] or [batch · heads, length, sources]; true where it does not count.
        padding: [batch, sources]; true where it does not count.
        heads: Number of heads.
        dtype: Type of the product.
    """

    def added(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)

    found = None
    if attn_mask is not None:
        found = added(attn_mask)
        found = torch.unflatten(found, 0, (-1, heads)) if found.dim() == 3 else found
    if padding is not None:
        more = added(padding)[:, None, None, :]
        found = more if found is None else found + more
    return found
