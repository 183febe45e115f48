"""A Python-based tensorrt backend as one writes it first: concatenate, copy, run, copy, wait. The floor to beat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
import triton_python_backend_utils as pb_utils
from cuda.bindings import runtime as cudart


class TritonPythonModel:
    """One instance of a model with one input and one output."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:  # noqa: ANN401
        """Return the configuration as it is."""
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the plan and allocate for its largest batch."""
        plan = Path(args["model_repository"]) / args["model_version"] / "model.plan"
        cudart.cudaSetDevice(0)
        self.engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan.read_bytes())
        self.context = self.engine.create_execution_context()
        last = self.engine.num_optimization_profiles - 1
        self.stream = cudart.cudaStreamCreate()[1]
        self.context.set_optimization_profile_async(last, int(self.stream))
        cudart.cudaStreamSynchronize(self.stream)
        self.names = [self.engine.get_tensor_name(place) for place in range(2)]
        largest = tuple(self.engine.get_tensor_profile_shape(self.names[0], last)[2])
        self.context.set_input_shape(self.names[0], largest)
        self.memory = [
            cudart.cudaMalloc(4 * int(np.prod(self.context.get_tensor_shape(name))))[1] for name in self.names
        ]
        for name, address in zip(self.names, self.memory, strict=True):
            self.context.set_tensor_address(name, address)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run one dynamic batch."""
        arrays = [pb_utils.get_input_tensor_by_name(request, self.names[0]).as_numpy() for request in requests]
        values = np.ascontiguousarray(np.concatenate(arrays))
        self.context.set_input_shape(self.names[0], values.shape)
        outputs = np.empty(tuple(self.context.get_tensor_shape(self.names[1])), np.float32)
        kinds = cudart.cudaMemcpyKind
        cudart.cudaMemcpyAsync(
            self.memory[0], values.ctypes.data, values.nbytes, kinds.cudaMemcpyHostToDevice, self.stream
        )
        self.context.execute_async_v3(int(self.stream))
        cudart.cudaMemcpyAsync(
            outputs.ctypes.data, self.memory[1], outputs.nbytes, kinds.cudaMemcpyDeviceToHost, self.stream
        )
        cudart.cudaStreamSynchronize(self.stream)
        responses, start = [], 0
        for array in arrays:
            part = outputs[start : start + len(array)]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(self.names[1], part)]))
            start += len(array)
        return responses
