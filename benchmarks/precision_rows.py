"""What all rows of the precision table share: models, batch sizes, the test data and the scorer. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder import datasets, recipes
from repo_builder.core.tensors import Array
from repo_builder.measure.judge import accuracy

MODELS = {"vgg7": "vgg-cifar10", "jsc-toy": "jsc-toy", "jsc-s": "jsc-s"}
BATCHES = (1, 8, 64, 256)
ENERGY_BATCH = 64


@dataclass(frozen=True)
class TestData:
    """Every test sample of a model.

    Attributes:
        values: Inputs (n, ...), fp32, preprocessed.
        labels: Classes (n,).
        classes: Their names.
    """

    values: Array
    labels: Array
    classes: tuple[str, ...]

    @property
    def classes_count(self) -> int:
        """The number of classes."""
        return len(self.classes)


def load_data(model: str, data_dir: Path) -> TestData:
    """Return the test samples of a model; CIFAR-10 lies in ``data_dir``."""
    recipe = recipes.load(MODELS[model])
    folder = data_dir if model == "vgg7" else None
    dataset = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=folder)
    held_out = dataset.split("test")
    if held_out.labels is None:
        raise SystemExit(f"{model}: the test set has no labels")
    return TestData(next(iter(held_out.inputs.values())), held_out.labels, dataset.classes)


def scores(logits: Array, data: TestData) -> dict[str, Any]:
    """Score outputs (n, classes) and return what the table shows."""
    found = accuracy.score(logits, data.labels, data.classes)
    names = ("samples", "top1", "low", "high", "macro_precision", "macro_recall", "macro_f1", "loss")
    return {name: getattr(found, name) for name in names}
