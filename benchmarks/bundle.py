"""ONNX files that share their weights, as small files beside one store of weights, to be carried to another machine.

    python benchmarks/bundle.py pack FOLDER STORE      # empties large initializers of every FOLDER/**/*.onnx
    python benchmarks/bundle.py unpack FOLDER STORE    # fills them in again

A weight that is another one in half precision is not stored, but cast again. Files come back byte for byte.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from repo_builder.core import files

_SMALLEST = 4096
_MARK = "bundle:"


def pack(folder: Path, store: Path) -> None:
    """Move the large initializers of all ONNX files below a folder into the store."""
    store.mkdir(parents=True, exist_ok=True)
    halves: dict[bytes, str] = {}
    paths = sorted(folder.rglob("*.onnx"))
    for path in paths:  # whole weights first, so that halves of them are recognised
        for item in _large(onnx.load(path)):
            if item.data_type == TensorProto.FLOAT:
                name = _keep(store, item.raw_data)
                half = np.frombuffer(item.raw_data, np.float32).astype(np.float16)
                halves[half.tobytes()] = name
    for path in paths:
        model = onnx.load(path)
        for item in _large(model):
            whole = halves.get(item.raw_data) if item.data_type == TensorProto.FLOAT16 else None
            item.doc_string = f"{_MARK}half:{whole}" if whole else f"{_MARK}as-is:{_keep(store, item.raw_data)}"
            item.raw_data = b""
        onnx.save(model, path)


def unpack(folder: Path, store: Path) -> None:
    """Fill the initializers of all ONNX files below a folder in again."""
    for path in sorted(folder.rglob("*.onnx")):
        model = onnx.load(path)
        for item in model.graph.initializer:
            if item.doc_string.startswith(_MARK):
                _, form, name = item.doc_string.split(":")
                data = (store / name).read_bytes()
                half = np.frombuffer(data, np.float32).astype(np.float16).tobytes() if form == "half" else data
                item.raw_data = half
                item.ClearField("doc_string")
        onnx.save(model, path)


def _large(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (item for item in model.graph.initializer if len(item.raw_data) >= _SMALLEST and not item.doc_string)


def _keep(store: Path, data: bytes) -> str:
    name = hashlib.sha256(data).hexdigest()
    if not (store / name).exists():
        files.write_bytes(store / name, data)
    return name


if __name__ == "__main__":
    {"pack": pack, "unpack": unpack}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
