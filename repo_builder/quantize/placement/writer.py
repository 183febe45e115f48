"""Nodes and initializers of a graph that is written, under names that nobody bears."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.graphs import DQ, Q, free_name
from repo_builder.core.onnx_tensors import packed_nibbles
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.codes import Codes


class Writer:
    """Collects the nodes and initializers of a placed graph under names that nobody bears."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.biases: dict[int, str] = {}  # place of an Add → the bias of the MatMul before it, dequantized
        self.codes: dict[str, str] = {}  # tensor → its codes
        self._stored: dict[tuple[str, str, bytes], str] = {}

    def name(self, stem: str) -> str:
        """Return a name that is free, and take it."""
        return free_name(stem, self.taken)

    def constant(self, stem: str, value: Array) -> str:
        """Store a constant; equal ones are stored once."""
        value = np.ascontiguousarray(value).reshape(value.shape)
        key = (str(value.dtype), str(value.shape), hashlib.sha256(value.tobytes()).digest())
        if key not in self._stored:
            self._stored[key] = self.name(stem)
            self.initializers.append(numpy_helper.from_array(value, self._stored[key]))
        return self._stored[key]

    def stored(self, stem: str, patterns: Array, element: int = TensorProto.FLOAT8E4M3FN) -> str:
        """Store a constant of a type that numpy lacks, one uint8 pattern a value; equal ones are stored once."""
        patterns = np.ascontiguousarray(patterns, np.uint8).reshape(patterns.shape)
        key = (str(element), str(patterns.shape), hashlib.sha256(patterns.tobytes()).digest())
        if key not in self._stored:
            self._stored[key] = self.name(stem)
            made = helper.make_tensor(self._stored[key], element, patterns.shape, patterns.tobytes(), raw=True)
            self.initializers.append(made)
        return self._stored[key]

    def nibbles(self, stem: str, codes: Array, element: int) -> str:
        """Store codes of 4 bits, as ONNX packs them; equal ones are stored once."""
        packed = packed_nibbles(codes)
        key = (str(element), str(codes.shape), hashlib.sha256(packed).digest())
        if key not in self._stored:
            self._stored[key] = self.name(stem)
            made = onnx.TensorProto(name=self._stored[key], data_type=element, dims=codes.shape, raw_data=packed)
            self.initializers.append(made)
        return self._stored[key]

    def node(self, kind: str, inputs: list[str], output: str, stem: str, **settings: int | list[int]) -> str:
        """Append a node and return its output."""
        made = helper.make_node(kind, inputs, [output], self.name(stem))
        made.attribute.extend(helper.make_attribute(key, value) for key, value in settings.items())
        self.nodes.append(made)
        return output

    def pair(self, tensor: str, output: str, codes: Codes, stem: str, *, quantized: Codes | None = None) -> str:
        """Append QuantizeLinear, with a step of its own where one is given, and DequantizeLinear; return the codes."""
        middle = tensor
        for kind, used in ((Q, quantized or codes), (DQ, codes)):
            word = "scale" if used is codes else "scale_before"
            settings = [
                self.constant(f"{stem}/{word}", np.asarray(used.scale)),
                self.constant(f"{stem}/zero", used.zero),
            ]
            target = output if kind == DQ else self.name(f"{stem}/codes")
            made = self.node(kind, [middle, *settings], target, f"{stem}/{kind}")
            middle = made if kind == Q else middle
        return middle

    def guarded(self, tensor: str) -> str:
        """Append a node that changes nothing, which no pass of ONNX Runtime sees through, and return its output."""
        lowest = self.constant("lowest_float", np.asarray(np.finfo(np.float32).min, np.float32))
        return self.node("Max", [tensor, lowest], self.name(f"{tensor}/guarded"), f"{tensor}/Max")

    def dequantized(self, stem: str, codes: Array, scale: Array, axis: int | None, zero: Array | None = None) -> str:
        """Append the DequantizeLinear of stored codes, zero point 0 unless given, and return its output."""
        names = [
            self.constant(f"{stem}/codes", codes),
            self.constant(f"{stem}/scale", scale),
            self.constant(f"{stem}/zero", np.zeros(scale.shape, codes.dtype) if zero is None else zero),
        ]
        more: dict[str, int | list[int]] = {} if axis is None else {"axis": axis}
        return self.node(DQ, names, self.name(f"{stem}/dequantized"), f"{stem}/{DQ}", **more)
