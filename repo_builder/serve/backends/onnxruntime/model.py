"""Triton's ``onnxruntime`` backend, Python-based."""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args):
        import onnxruntime as ort

        config = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], config.get("default_model_filename") or "model.onnx")
        options = ort.SessionOptions()
        for key, value in config.get("parameters", {}).items():
            if key == "intra_op_thread_count":
                options.intra_op_num_threads = int(value["string_value"])
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [item.name for item in self.session.get_inputs()]
        self.outputs = [item.name for item in self.session.get_outputs()]

    def execute(self, requests):
        arrays = [[pb_utils.get_input_tensor_by_name(r, name).as_numpy() for name in self.inputs] for r in requests]
        feed = {name: np.concatenate([item[k] for item in arrays]) for k, name in enumerate(self.inputs)}
        results = self.session.run(self.outputs, feed)
        responses, start = [], 0
        for request, item in zip(requests, arrays):
            stop = start + len(item[0])
            wanted = request.requested_output_names()
            responses.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor(name, array[start:stop]) for name, array in zip(self.outputs, results) if name in wanted]
                )
            )
            start = stop
        return responses
