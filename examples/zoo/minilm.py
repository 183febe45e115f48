"""all-MiniLM-L6-v2 in plain torch: names as in its safetensors; sentence embeddings, mean-pooled and normalised."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, INNER, LAYERS, WORDS, POSITIONS = 384, 12, 1536, 6, 30522, 512
_HIDDEN = -1e4  # added to the scores of what a mask hides; fp16 holds it


class Embeddings(nn.Module):
    """Words and positions as vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(POSITIONS)[None])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) → (batch, tokens, 384)."""
        places = self.position_embeddings(self.position_ids[:, : ids.shape[1]])
        return self.LayerNorm(self.word_embeddings(ids) + places + self.token_type_embeddings.weight[0])


class SelfAttention(nn.Module):
    """Twelve heads of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, 384) → the same."""
        count, tokens, _ = values.shape
        query, key, value = (
            layer(values).view(count, tokens, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS) + mask
        return (scores.softmax(-1) @ value).transpose(1, 2).reshape(count, tokens, WIDTH)


class Output(nn.Module):
    """A linear layer, the sum with what it leaves out, and their norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, values: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width) → (batch, tokens, 384)."""
        return self.LayerNorm(self.dense(values) + around)


class Attention(nn.Module):
    """Attention with its output."""

    def __init__(self) -> None:
        super().__init__()
        self.self, self.output = SelfAttention(), Output(WIDTH)


class Intermediate(nn.Module):
    """The wide layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, INNER)


class Layer(nn.Module):
    """One encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = Attention(), Intermediate(), Output(INNER)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, 384) → the same."""
        attended = self.attention.output(self.attention.self(values, mask), values)
        return self.output(functional.gelu(self.intermediate.dense(attended)), attended)


class Encoder(nn.Module):
    """Six layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(LAYERS))


class Pooler(nn.Module):
    """In the weights' file; sentence embeddings do not use it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, WIDTH)


class MiniLM(nn.Module):
    """Token ids and their mask → an embedding of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.encoder, self.pooler = Embeddings(), Encoder(), Pooler()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) twice, int64 → (batch, 384)."""
        shown = attention_mask.to(torch.float32)
        hidden = (1 - shown)[:, None, None, :] * _HIDDEN
        values = self.embeddings(input_ids)
        for layer in self.encoder.layer:
            values = layer(values, hidden)
        mean = (values * shown[:, :, None]).sum(1) / shown.sum(1, keepdim=True).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)


def build() -> nn.Module:
    """Return the network without its weights."""
    return MiniLM()
