"""What placement decides, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx

from repo_builder.core.recipe import InputQuantizer


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How one tensor's range is to be found.

    Attributes:
        calibrators: The calibrators to run; the widest ``amax`` of theirs is the tensor's. ``max`` stands alone, as
            nothing is wider. Never empty.
        layers: The layers whose rules ask for them, in graph order; empty where ``max`` is taken because no layer's
            rule governs the tensor.
    """

    calibrators: tuple[InputQuantizer, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PlacedTensor:
    """One tensor that carries Q/DQ.

    Attributes:
        name: The tensor in the fp32 graph.
        scale: One step, float32.
        zero_point: The code of 0.
        dtype: ``uint8`` or ``int8``.
        low: The least value that a code stands for.
        high: The largest.
        int8_readers: Names of the nodes that read it through Q/DQ and are meant to run in int8.
        float_readers: Names of the nodes that read it and are not, ``(output)`` for the graph's output and
            ``(subgraph)`` for a body of If, Loop or Scan.
        floats_read: What the float readers read: the ``original``, or the ``rounded`` values behind Q/DQ.
    """

    name: str
    scale: float
    zero_point: int
    dtype: Literal["uint8", "int8"]
    low: float
    high: float
    int8_readers: tuple[str, ...]
    float_readers: tuple[str, ...]
    floats_read: Literal["original", "rounded"]


@dataclass(frozen=True, kw_only=True)
class LayerOutcome:
    """What a layer was asked to be and what it is in the placed graph.

    Attributes:
        name: The layer.
        type: Its type, as in ``Conv2d``.
        asked: The precision that its rule asks for.
        placed: The precision that it has in the placed graph.
        reason: Why the two differ; empty where they do not.
    """

    name: str
    type: str
    asked: str
    placed: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A graph with Q/DQ for one target, and why it looks as it does.

    Attributes:
        model: The graph; layers that are to be fp16 are still fp32 in it.
        profile: The name of the target's profile.
        tensors: Tensor → its Q/DQ, in graph order.
        layers: One row for each plan, in the plans' order.
    """

    model: onnx.ModelProto
    profile: str
    tensors: Mapping[str, PlacedTensor]
    layers: tuple[LayerOutcome, ...]
