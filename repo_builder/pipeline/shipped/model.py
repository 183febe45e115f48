"""A step of a pipeline in Triton's Python backend: ``step.py`` beside this file, with ``step.json``, for every request.

Each request is run by itself, so that one that fails fails alone. Imports nothing but what lies beside it.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb


class TritonPythonModel:
    """What the Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the step."""
        config = json.loads(args["model_config"])
        self._inputs = [item["name"] for item in config["input"]]
        self._outputs = [item["name"] for item in config["output"]]
        folder = Path(args["model_repository"]) / args["model_version"]
        spec = importlib.util.spec_from_file_location("repo_builder_step", folder / "step.py")
        if spec is None or spec.loader is None:
            raise RuntimeError("there is no step.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._refusal = module.Refused
        self._step = module.Step(folder, json.loads((folder / "step.json").read_text(encoding="utf-8")))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:  # noqa: ANN401 - the backend's own
        try:
            arrays = [pb.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            found = self._step(*arrays)
            tensors = [pb.Tensor(name, value) for name, value in zip(self._outputs, found, strict=True)]
        except self._refusal as error:
            return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
        except Exception as error:  # whatever a library raises: this request's fault alone
            return pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}"))
        return pb.InferenceResponse(tensors)
