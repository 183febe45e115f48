"""ONNX files of any size: what lies beside them is followed, and what is too large for one file is put beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx.external_data_helper import convert_model_to_external_data

from repo_builder.core import files, onnx_tensors
from repo_builder.core.errors import ModelError, first_line

# protobuf takes no message of 2 GiB; what is not weights needs room, too.
LARGEST_BYTES = 2**31 - 2**24


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


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model: the same bytes each time; weights beyond 2 GiB go to ``NAME.onnx.data`` beside it."""
    if model.ByteSize() <= LARGEST_BYTES:
        files.write_bytes(path, model.SerializeToString(deterministic=True))
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    beside = path.with_name(f"{path.name}.data")
    beside.unlink(missing_ok=True)
    convert_model_to_external_data(copy, location=beside.name, size_threshold=1024, convert_attribute=False)
    onnx.save(copy, path)


@contextmanager
def loadable(model: onnx.ModelProto) -> Iterator[bytes | str]:
    """Yield a model as a session takes it: its bytes, or where those are too many a file that lasts as long as this."""
    if model.ByteSize() <= LARGEST_BYTES:
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        yield str(path)
