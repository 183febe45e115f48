"""ONNX Runtime, as the rooms that only want to know what it makes of a file use it: a leaf."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from repo_builder.core import shapes
from repo_builder.core.errors import ModelError, first_line
from repo_builder.core.tensors import Array

VERSION: str = ort.__version__
PROVIDERS: tuple[str, ...] = tuple(ort.get_available_providers())


class Session:
    """A model on the CPU, on one thread, optimized as Triton's onnxruntime backend does by default.

    Args:
        model: The file, or a serialized model.

    Raises:
        ModelError: ONNX Runtime refuses it.
    """

    def __init__(self, model: Path | bytes) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        # One thread: what is compared below must not depend on how work is split up.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            source = model if isinstance(model, bytes) else str(model)
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes derive from Exception alone
            raise ModelError(f"ONNX Runtime {VERSION} cannot load it: {_reason(error)}") from None
        self.inputs = {item.name: shapes.stated(item.shape) for item in self._session.get_inputs()}
        self.outputs = {item.name: shapes.stated(item.shape) for item in self._session.get_outputs()}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return all outputs by name.

        Raises:
            ModelError: The model cannot be run on these inputs.
        """
        names = list(self.outputs)
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # as above
            raise ModelError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Return what ONNX Runtime said, without the place in its sources where it said it."""
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first_line(error))
    return re.sub(r"^Load model from .* failed:\s*", "", line)
