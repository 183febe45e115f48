"""What the tensorrt backend uses of TensorRT: an "engine" is a JSON text, and doubles its inputs into its outputs,
or the first ``take`` values of each row of them.

{"inputs": {"x": {"dtype": "FLOAT", "shape": [-1, 3], "profiles": [[[1, 3], [4, 3], [8, 3]]]}},
 "outputs": {"y": {"dtype": "FLOAT", "of": "x"}}}
"""

import ctypes
import enum
import json
import sys
import types

import numpy as np
import standin_cudart as runtime

# The backend imports TensorRT first: from here on cuda-python is the stand-in too, be it installed or not.
_bindings = types.ModuleType("cuda.bindings")
_bindings.runtime = runtime
sys.modules.update({"cuda.bindings": _bindings, "cuda.bindings.runtime": runtime})
sys.modules.setdefault("cuda", types.ModuleType("cuda"))

__version__ = "8.5.3.1"
_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32}


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Logger:
    ERROR = 1

    def __init__(self, severity):
        pass


class Runtime:
    def __init__(self, log):
        pass

    def deserialize_cuda_engine(self, data):
        try:
            return Engine(json.loads(data))
        except ValueError:
            return None


class Engine:
    def __init__(self, spec):
        self.spec = spec
        self.tensors = {**spec["inputs"], **spec["outputs"]}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, place):
        return list(self.tensors)[place]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.spec["inputs"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType[self.tensors[name]["dtype"]]

    def get_tensor_profile_shape(self, name, place):
        return self.tensors[name]["profiles"][place]

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.profile, self.shapes, self.addresses = engine, 0, {}, {}

    def set_optimization_profile_async(self, place, stream):
        self.profile = place

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.tensors[name]["profiles"][self.profile]
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        item = self.engine.tensors[name]
        shape = self.shapes[item.get("of", name)]
        return (shape[0], item["take"]) if "take" in item else shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def run():
            for name, item in self.engine.spec["outputs"].items():
                values = self._array(item["of"], shapes[item["of"]], addresses)
                taken = values.reshape(len(values), -1)[:, : item["take"]] if "take" in item else values
                self._array(name, taken.shape, addresses)[...] = 2 * taken

        runtime.put(run, stream)
        return True

    def _array(self, name, shape, addresses):
        kind = np.dtype(_TYPES[self.engine.tensors[name]["dtype"]])
        size = int(np.prod(shape)) * kind.itemsize
        block = (ctypes.c_uint8 * size).from_address(addresses[name])
        return np.ctypeslib.as_array(block).view(kind).reshape(shape)
