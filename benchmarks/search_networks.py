"""Networks of ``precision_search.py`` and their data: the zoo's, with a readout that tells handwritten digits apart.

Weights are seeded and untrained, so that 1000 outputs say nothing by themselves: what gives a network an accuracy is a
linear layer behind them, fitted by ridge regression to copies of three fifths of scikit-learn's digits. How much of the
digits a random network lets through is what its accuracy is: about two thirds to four fifths, far from what training
would give, and with many images near the border of two classes, which change sides by chance as soon as anything is
rounded. So a fall of 0.3 points is only seen on many samples: those that judge are drawn while they are run, as many as
are asked for, and never stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from repo_builder.core.recipe import Recipe, parse

CLASSES = (
    "mobilenet_v3_small",
    "efficientnet_b0",
    "squeezenet",
    "mobilenet_v2",
    "resnet18",
    "densenet121",
    "vit_small",
    "resnet50",
)
DENSE = ("unet", "yolov8n")
# Copies of each image that nothing but the search sees: as many as a network's time allows, as a fall of 0.3 points is
# only seen on thousands.
COPIES = {"mobilenet_v3_small": 30, "squeezenet": 12, "mobilenet_v2": 12, "efficientnet_b0": 12}
FEW_COPIES = 4
RIDGE = 3e-4  # of the largest singular value squared: a readout that lives of no tiny differences
_DIGITS = "digits.npz"
_HELD = np.arange(1078, 1797)  # what no readout was fitted to


def raw_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, from ``digits.npz`` in the folder where scikit-learn is not."""
    if (folder / _DIGITS).exists():
        with np.load(folder / _DIGITS) as kept:
            return kept["values"], kept["labels"]
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    np.savez_compressed(folder / _DIGITS, values=values.astype(np.uint8), labels=labels)
    return values, labels


def digits(
    raw: tuple[np.ndarray, np.ndarray], numbers: np.ndarray, copies: int, seed: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return copies of handwritten digits as images: enlarged, shifted by up to a tenth, channels of different gain."""
    values, labels = raw
    generator, images = np.random.default_rng(seed), []
    gains = np.array([1.0, 0.7, -0.8], np.float32)[:, None, None]
    for number in np.repeat(numbers, copies):
        side = generator.integers(int(size * 0.75), size + 1)
        places = np.clip((np.arange(side) + 0.5) * 8 / side - 0.5, 0, 7)
        low, part = places.astype(int).clip(max=6), (places - places.astype(int).clip(max=6)).astype(np.float32)
        flat = values[number].reshape(8, 8).astype(np.float32) / 8 - 1
        rows = flat[low] * (1 - part)[:, None] + flat[low + 1] * part[:, None]
        whole = rows[:, low] * (1 - part) + rows[:, low + 1] * part
        image = np.full((size, size), -1, np.float32)
        top, left = generator.integers(0, size - side + 1, 2)
        image[top : top + side, left : left + side] = whole
        images.append(gains * image + generator.standard_normal((3, size, size), np.float32) * 0.1)
    return np.stack(images), np.repeat(labels[numbers], copies).astype(np.int64)


def with_readout(model: onnx.ModelProto, raw: tuple[np.ndarray, np.ndarray], size: int) -> onnx.ModelProto:
    """Return a network with a linear layer behind its 1000 outputs, fitted to three fifths of the digits."""
    images, labels = digits(raw, np.arange(0, 1078), 4, 1, size)
    runner = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = np.concatenate([runner.run(None, {"x": images[at : at + 64]})[0] for at in range(0, len(images), 64)])
    middle, spread = found.mean(axis=0), found.std(axis=0) + 1e-9
    features = ((found - middle) / spread).astype(np.float64)
    left, sizes, right = np.linalg.svd(features, full_matrices=False)
    shrunk = sizes / (np.square(sizes) + RIDGE * sizes[0] ** 2)
    fitted = right.T @ (shrunk[:, None] * (left.T @ (np.eye(10)[labels] - 0.1))) / spread[:, None]
    weights = fitted.astype(np.float32), (-middle @ fitted).astype(np.float32)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.initializer.append(numpy_helper.from_array(weights[0], "readout.weight"))
    made.graph.initializer.append(numpy_helper.from_array(weights[1], "readout.bias"))
    made.graph.node.append(
        helper.make_node("Gemm", ["y", "readout.weight", "readout.bias"], ["classes"], name="readout")
    )
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info("classes", onnx.TensorProto.FLOAT, ["n", 10]))
    return made


def judging(raw: tuple[np.ndarray, np.ndarray], count: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images and labels that judge in the end, ``count`` in all: copies that neither fit nor search ever saw."""
    for number, start in enumerate(range(0, count, len(_HELD))):
        numbers = np.random.default_rng(1000 + number).permutation(_HELD)[: count - start]
        yield digits(raw, numbers, 1, 2000 + number, size)


def made(name: str, folder: Path, size: int) -> Path:
    """Write a network, if it is not there, which needs torch; return its file."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        from cpu_zoo import exported

        folder.mkdir(parents=True, exist_ok=True)
        raw = raw_digits(folder)
        model = exported(name, size)
        onnx.save(with_readout(model, raw, size) if name in CLASSES else model, path)
    return path


def data_of(name: str, folder: Path, size: int) -> Path:
    """Write the samples that calibrate and that a search looks at, if they are not there; return their file."""
    path, labelled = folder / f"{name}.npz", name in CLASSES
    if not path.exists():
        copies = COPIES.get(name, FEW_COPIES) if labelled else 1
        images, labels = digits(raw_digits(folder), _HELD, copies, 2, size)
        data: Mapping[str, np.ndarray] = {"x": images, **({"labels": labels} if labelled else {})}
        np.savez(path, **data)  # type: ignore[arg-type]
    return path


def recipe_of(name: str, folder: Path, size: int, batch: int) -> Recipe:
    """Return the recipe of a network, which is made if it is not there."""
    path = made(name, folder, size)
    output = onnx.load(path).graph.output[0]
    shape = [item.dim_value for item in output.type.tensor_type.shape.dim][1:]
    profile = {"min_batch": 1, "opt_batch": batch, "max_batch": batch}  # one: each more costs every trial a build
    # The build's own test split is small where fresh images judge: what it has not, the search has to choose by.
    parts = {"test": 0.05, "validation": 0.9} if name in CLASSES else {"test": 0.4, "validation": 0.5}
    return parse({
        "name": name,
        "model": {
            "source": str(path),
            "inputs": [{"name": "x", "dtype": "fp32", "shape": [3, size, size]}],
            "outputs": [{"name": output.name, "dtype": "fp32", "shape": shape}],
        },
        "data": {"source": str(data_of(name, folder, size)), "calibration": 128, **parts},
        "quantize": {"keep": "all", "layers": [{"precision": "int8"}]},
        "compile": {"tensorrt": {"profiles": [profile]}},
        "repository": {"max_batch_size": batch},
        "measure": {"task": "classification" if name in CLASSES else "other"},
    })  # fmt: skip
