"""An fp32 ONNX graph as a torch module that can be trained: BatchNorm is folded in it already, layers keep their names.

It runs the very graph that is placed and compiled, node by node, with fake quantizers where Q/DQ will stand. What is
trained are weights and biases of layers; all other constants stay, as does what evaluation switches off (dropout).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from repo_builder.core.errors import QuantizeError, first_line
from repo_builder.core.graphs import LAYER_OPS, own
from repo_builder.core.tensors import Array
from repo_builder.quantize.finetune.fake import Fakes
from repo_builder.quantize.finetune.operators import OPERATORS
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.ranges import Ranges


class TrainableGraph(nn.Module):
    """A graph in torch: inputs by name, batch first → outputs by name.

    Args:
        model: The fp32 graph as ``quantize.prepare`` leaves it.
        quantized: The fake quantizers, made of the same graph; None to run it in fp32.

    Raises:
        QuantizeError: The graph has an operator that is not known here.
    """

    def __init__(self, model: onnx.ModelProto, quantized: Fakes | None = None) -> None:
        super().__init__()
        self._model, self._index, self._quantized = model, Index(model), quantized
        self.fakes = nn.ModuleList(quantized.modules if quantized else ())
        self._steps = [place for place, node in enumerate(self._index.nodes) if not self._known_ahead(node)]
        for place in self._steps:
            _check(self._index.nodes[place])
        self._attributes = {place: _attributes(self._index.nodes[place]) for place in self._steps}
        self._trained = list(dict.fromkeys(_trainable(self._index)))
        self.trained = nn.ParameterList(nn.Parameter(_tensor(self._value(name))) for name in self._trained)
        self._places = {name: place for place, name in enumerate(self._trained)}
        self._fixed: dict[str, Tensor] = {}  # whole numbers stay on the CPU
        self._buffers_of: dict[str, str] = {}
        self._outputs = [item.name for item in model.graph.output]
        read = [name for place in self._steps for name in self._index.nodes[place].input]
        for name in dict.fromkeys((*read, *self._outputs)):
            if name and self._index.constant(name) and name not in self._places:
                self._keep(name)

    def _known_ahead(self, node: onnx.NodeProto) -> bool:
        return all(self._index.constant(name) for name in node.output)

    def _value(self, name: str) -> Array:
        value = self._index.value(name)
        if value is None:
            raise QuantizeError(f"the constant '{name}' cannot be computed ahead", where="finetune")
        return value

    def _keep(self, name: str) -> None:
        value = _tensor(self._value(name))
        if value.is_floating_point():
            self._buffers_of[name] = f"constant_{len(self._buffers_of)}"
            self.register_buffer(self._buffers_of[name], value, persistent=False)
        else:
            self._fixed[name] = value

    def weights(self) -> list[nn.Parameter]:
        """Return what is trained of the graph itself."""
        return list(self.trained)

    def steps(self) -> list[nn.Parameter]:
        """Return the fake quantizers' changes of their steps."""
        return [item.change for item in self.fakes]  # type: ignore[misc]

    def settle(self) -> None:
        """Bring what is trained back to where it may be; called after every step of an optimizer."""
        for item in self.fakes:
            item.settle()  # type: ignore[operator]

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name; ``inputs`` by name, batch first."""
        values: dict[str, Tensor] = {name: inputs[name] for name in self._index.inputs}
        codes: dict[str, Tensor] = {}
        for name in self._index.inputs:
            self._quantize(name, values, codes)
        for place in self._steps:
            node = self._index.nodes[place]
            try:
                found = OPERATORS[node.op_type](self._inputs(place, values, codes), self._attributes[place])
            except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
                message = f"its {node.op_type} does not run in torch: {first_line(error)}"
                hint = "lower finetune.batch_size where memory ran out; else leave [finetune] out"
                raise QuantizeError(message, where=node.name, hint=hint) from error
            for name, value in zip(node.output, found if isinstance(found, tuple) else (found,), strict=False):
                values[name] = value
                self._quantize(name, values, codes)
        constants = {name: self._constant(name) for name in self._outputs}
        return {name: self._seen(name, values, codes) if item is None else item for name, item in constants.items()}

    def _quantize(self, name: str, values: dict[str, Tensor], codes: dict[str, Tensor]) -> None:
        if self._quantized is not None and name in self._quantized.tensors:
            codes[name] = self.fakes[self._quantized.tensors[name]](values[name])

    def _seen(self, name: str, values: dict[str, Tensor], codes: dict[str, Tensor]) -> Tensor:
        """Return what float readers see of a tensor: the rounded values where an int8 node makes it."""
        rounded = self._quantized is not None and name in self._quantized.choice.made and name in codes
        return codes[name] if rounded else values[name]

    def _inputs(self, place: int, values: dict[str, Tensor], codes: dict[str, Tensor]) -> list[Tensor | None]:
        node = self._index.nodes[place]
        through = self._quantized.choice.int8_reads(place) if self._quantized else ()
        found: list[Tensor | None] = []
        for position, name in enumerate(node.input):
            constant = self._constant(name)
            if not name:
                found.append(None)
            elif constant is not None:
                found.append(self._weight(place, position, constant))
            else:
                found.append(codes[name] if name in through and name in codes else self._seen(name, values, codes))
        return found

    def _constant(self, name: str) -> Tensor | None:
        """Return a constant as it is now, None for a tensor that is none."""
        if name in self._places:
            weight: Tensor = self.trained[self._places[name]]
            return weight
        if name in self._buffers_of:
            value: Tensor = getattr(self, self._buffers_of[name])
            return value
        return self._fixed.get(name)

    def _weight(self, place: int, position: int, value: Tensor) -> Tensor:
        """Return a constant as a node reads it: an int8 layer's weight is rounded."""
        if self._quantized is None or position != 1 or place not in self._quantized.choice.layers.int8:
            return value
        layer = self._quantized.choice.layers.plans[place].name
        rounded: Tensor = self.fakes[self._quantized.weights[layer]](value)
        return rounded

    def tuned(self) -> onnx.ModelProto:
        """Return the fp32 graph with the weights as they are now; everything else is as it was."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        values = dict(zip(self._trained, self.trained, strict=True))
        for item in model.graph.initializer:
            if item.name in values:
                item.CopyFrom(numpy_helper.from_array(values[item.name].detach().cpu().numpy(), item.name))
        return model

    def ranges(self, before: Ranges, *, learned: bool) -> Ranges:
        """Return the ranges of what is fake-quantized, as they are now (``Fakes.ranges``)."""
        return Ranges() if self._quantized is None else self._quantized.ranges(before, learned=learned)


def _tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.array(value))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    tensors = {
        name: _tensor(numpy_helper.to_array(item)) for name, item in found.items() if isinstance(item, onnx.TensorProto)
    }
    return {"outputs": len(node.output), **found, **tensors}


def _check(node: onnx.NodeProto) -> None:
    """Refuse an operator that is not known here."""
    if node.op_type not in OPERATORS or not own(node):
        raise QuantizeError(
            f"fine-tuning does not know the operator {node.op_type}",
            where=node.name,
            hint="leave [finetune] out, or fine-tune with a library and bring the checkpoint",
        )


def _trainable(index: Index) -> Iterator[str]:
    """Yield the initializers that are weights and biases of layers; also a bias that is added behind a MatMul."""
    for node in index.nodes:
        if not own(node):
            continue
        if node.op_type in LAYER_OPS:
            names = node.input[1:]
        elif node.op_type == "Add":
            makers = [index.nodes[index.makers[name]] for name in node.input if name in index.makers]
            names = node.input if any(item.op_type == "MatMul" for item in makers) else []
        else:
            continue
        for name in names:
            stored = index.initializers.get(name)
            if stored is not None and stored.data_type == onnx.TensorProto.FLOAT and index.constant(name):
                yield name
