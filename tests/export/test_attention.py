"""Attention that is exported is what torch computes, and one short chain of nodes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repo_builder.export.attention import attend, plain_attention

LENGTH, WIDTH, HEADS = 5, 8, 2
MASKS: dict[str, Tensor | None] = {
    "none": None,
    "bool": torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1),
    "float": torch.linspace(-2, 1, LENGTH * LENGTH).reshape(LENGTH, LENGTH),
    "a head": torch.linspace(-2, 1, 3 * HEADS * LENGTH * LENGTH).reshape(3 * HEADS, LENGTH, LENGTH),
}


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("batch_first", "padded", "bias"), list(itertools.product((True, False), repeat=3)))
def test_multi_head_attention_gives_what_torch_gives(mask: str, *, batch_first: bool, padded: bool, bias: bool) -> None:
    torch.manual_seed(1)
    module = nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=batch_first).eval()
    x = _random(3, LENGTH, WIDTH) if batch_first else _random(LENGTH, 3, WIDTH)
    padding = torch.zeros(3, LENGTH)
    padding[1, LENGTH - 2 :] = -1e4 if mask != "bool" else 0
    given = {
        "key_padding_mask": (padding < 0 if mask == "bool" else padding) if padded else None,
        "attn_mask": MASKS[mask],
    }
    with torch.no_grad():
        for inputs in ((x, x, x), (x, 2 * x, x - 1), (x, x + 1, x + 1)):
            wanted = module(*inputs, **given)
            with plain_attention(module):
                found = module(*inputs, **given)
            for left, right in zip(found, wanted, strict=True):
                torch.testing.assert_close(left, right)
    assert "forward" not in vars(module)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": MASKS["float"]},
        {"attn_mask": torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()},
        {"enable_gqa": True},
    ],
)
def test_attend_is_torchs_scaled_dot_product_attention(options: dict[str, object]) -> None:
    query, few = _random(2, 4, LENGTH, 6), 2 if "enable_gqa" in options else 4
    key, value = _random(2, few, LENGTH, 6) + 1, _random(2, few, LENGTH, 3)
    wanted = functional.scaled_dot_product_attention(query, key, value, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(attend(query, key, value, **options), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"add_zero_attn": True}, {"add_bias_kv": True}, {"kdim": 6, "vdim": 6}])
def test_what_is_not_usual_stays_torchs_own(options: dict[str, object]) -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options).eval()  # type: ignore[arg-type]
    with plain_attention(module):
        assert "forward" not in vars(module)
    assert functional.scaled_dot_product_attention is not attend


def test_a_failure_leaves_torch_as_it_was() -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS).eval()
    with pytest.raises(RuntimeError, match="on purpose"), plain_attention(module):
        raise RuntimeError("on purpose")
    assert "forward" not in vars(module)
    assert functional.scaled_dot_product_attention is not attend


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        result: Tensor = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return result


def test_the_exported_graph_is_attention_and_nothing_else(export, run) -> None:
    torch.manual_seed(2)
    module = _Block().eval()
    made = export(module, (LENGTH, WIDTH))
    kinds = [node.op_type for node in made.graph.node]
    assert not {"Shape", "Gather", "Concat", "Sqrt", "Expand"} & set(kinds), kinds
    assert kinds.count("Softmax") == 1
    assert kinds.count("Transpose") == 4
    assert "attention.out_proj" in {node.name for node in made.graph.node}
    x = _random(7, LENGTH, WIDTH)  # another batch than the one that was traced
    with torch.no_grad():
        np.testing.assert_allclose(run(made, x=x.numpy())["y"], module(x).numpy(), atol=1e-5)
