"""Write model.onnx, a small convolutional network with seeded weights, and data.npz, what it is to recognise."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES, SIZE = 4, 12
random = np.random.default_rng(0)

# One prototype image a class; samples are noisy prototypes.
prototypes = random.normal(size=(CLASSES, 1, SIZE, SIZE)).astype(np.float32)
labels = np.arange(800) % CLASSES
images = prototypes[labels] + random.normal(scale=2.0, size=(800, 1, SIZE, SIZE)).astype(np.float32)
np.savez("data.npz", image=images.astype(np.float32), y=labels)

# The second convolution is as large as what it sees, and compares it with what prototypes look like there.
filters = random.normal(scale=0.3, size=(8, 1, 3, 3)).astype(np.float32)
windows = np.lib.stride_tricks.sliding_window_view(prototypes[:, 0], (3, 3), axis=(1, 2))
seen = np.maximum(np.einsum("nhwij,oij->nohw", windows, filters[:, 0]), 0)
templates = (seen - seen.mean(axis=0)) / 40
nodes = [
    helper.make_node("Conv", ["image", "filters"], ["h"], name="features"),
    helper.make_node("Relu", ["h"], ["r"], name="relu"),
    helper.make_node("Conv", ["r", "templates", "bias"], ["c"], name="compare"),
    helper.make_node("Flatten", ["c"], ["f"], name="flatten"),
    helper.make_node("Gemm", ["f", "mix"], ["logits"], name="scores"),
]
stored = {
    "filters": filters,
    "templates": templates.astype(np.float32),
    "bias": (-0.5 * np.einsum("nohw,nohw->n", templates, templates) * 40).astype(np.float32),
    "mix": np.eye(CLASSES, dtype=np.float32),
}
graph = helper.make_graph(
    nodes,
    "shapes",
    [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
    [numpy_helper.from_array(value, name) for name, value in stored.items()],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "model.onnx")
print("wrote model.onnx and data.npz")
