"""ONNX files of any size: what lies beside them is followed, and what is too large for one file is put beside it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import numpy_helper

from repo_builder.core import files, graphs, onnx_tensors
from repo_builder.core.errors import ModelError, first_line

# protobuf takes no message of 2 GiB; what is not weights needs room, too.
LARGEST_BYTES = 2**31 - 2**24
_SMALLEST_BYTES = 1024  # smaller ones stay in the model's file: shapes, axes, scalars
_ALIGNED_BYTES = 64


def load(path: Path) -> onnx.ModelProto:
    """Read a model with the weights that lie beside it.

    Raises:
        ModelError: It is no ONNX model, a file that it names is missing, or a tensor in it is damaged.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's and onnx's errors share no base class
        hint = "export or copy it again, with the files that lie beside it"
        raise ModelError(f"is not an ONNX model ({first_line(error)})", where=str(path), hint=hint) from error
    onnx_tensors.refuse_damaged(model, path)
    return model


def save(model: onnx.ModelProto, path: Path, *, largest_bytes: int | None = None) -> None:
    """Write a model: the same bytes each time; one that is too large for a file has its weights beside it.

    They go to ``NAME.onnx.data``. Its SHA-1 stands in the model's file (ONNX's ``checksum``), so that this file changes
    with the weights, as every hash that is taken of it does.

    Args:
        model: The model; it is not changed.
        path: The file.
        largest_bytes: Size from which on weights go beside it; ``LARGEST_BYTES`` where it is left out.
    """
    beside = _beside(path)
    if model.ByteSize() <= (LARGEST_BYTES if largest_bytes is None else largest_bytes):
        files.write_bytes(path, model.SerializeToString(deterministic=True))
        beside.unlink(missing_ok=True)
        return
    with files.output_errors(beside), files.replacing_file(beside) as stream:
        data = _Data(stream, beside.name)
        light = _without_weights(model, data)
    for tensor in _stored(light.graph):
        if tensor.external_data:
            tensor.external_data.add(key="checksum", value=data.sha1.hexdigest())
    files.write_bytes(path, light.SerializeToString(deterministic=True))


def remove(path: Path) -> None:
    """Remove a model that ``save`` wrote, with what lies beside it."""
    path.unlink(missing_ok=True)
    _beside(path).unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


class _Data:
    """The file of weights that is written."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.sha1 = hashlib.sha1(usedforsecurity=False)
        self._stream, self._name, self._size = stream, name, 0

    def put(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Write a tensor's values; return the tensor without them."""
        values = tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
        self._write(b"\0" * (-self._size % _ALIGNED_BYTES))
        made = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        made.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self._name), ("offset", self._size), ("length", len(values))):
            made.external_data.add(key=key, value=str(value))
        self._write(values)
        return made

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self.sha1.update(data)
        self._size += len(data)


def _without_weights(model: onnx.ModelProto, data: _Data) -> onnx.ModelProto:
    """Return a model whose large weights were put aside one by one: it is never copied whole."""
    light = onnx.ModelProto()
    graphs.copy_fields(model, light, but=("graph",))
    graphs.copy_fields(model.graph, light.graph, but=("initializer",))
    light.graph.initializer.extend(data.put(item) if _large(item) else item for item in model.graph.initializer)
    for graph in (inner for node in light.graph.node for inner in _all_bodies(node)):
        for item in graph.initializer:
            if _large(item):
                item.CopyFrom(data.put(item))
    return light


def _large(tensor: onnx.TensorProto) -> bool:
    strings = tensor.data_type == onnx.TensorProto.STRING
    return not strings and tensor.ByteSize() >= _SMALLEST_BYTES and tensor.data_location != onnx.TensorProto.EXTERNAL


def _all_bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for graph in graphs.bodies(node):
        yield graph
        for inner in graph.node:
            yield from _all_bodies(inner)


def _stored(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for inner in _all_bodies(node):
            yield from inner.initializer


@contextmanager
def loadable(model: onnx.ModelProto) -> Iterator[bytes | str]:
    """Yield a model as a session takes it: its bytes, or where those are too many a file that lasts as long as this.

    The model is let go before: where nobody else holds it, a session and it are never in memory together.
    """
    if model.ByteSize() <= LARGEST_BYTES:
        data = model.SerializeToString()
        del model
        yield data
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        del model
        yield str(path)
