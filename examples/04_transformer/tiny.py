"""A transformer encoder over token ids, in plain torch, and sentences of a made-up language."""

import numpy as np
import torch
from torch import nn

WORDS, LENGTH = 64, 16


class Block(nn.Module):
    """Attention, then two linear layers, each with a way around."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        query, key, value = (self.split(layer(h)) for layer in (self.query, self.key, self.value))
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Encoder(nn.Module):
    """Embeddings, two blocks, the mean, and two classes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.blocks = nn.Sequential(Block(width, heads), Block(width, heads))
        self.head = nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.words(ids) + self.places).mean(1))


def make(width: int = 32, heads: int = 2) -> nn.Module:
    """Return the network with seeded weights; a real one loads its own here, or names a checkpoint in the recipe."""
    return Encoder(width, heads)


def sentences() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return ids (400, 16) and whether the network, with the seed of the recipe, takes each for the second kind."""
    ids = np.random.default_rng(1).integers(0, WORDS, (400, LENGTH))
    torch.manual_seed(0)
    with torch.inference_mode():
        labels = make().eval()(torch.from_numpy(ids)).argmax(1).numpy()
    return {"ids": ids}, labels
