"""``jets``: 20,000 simulated jets of 16 features and 5 classes, shipped with the package (see data/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repo_builder.core import assets
from repo_builder.core.errors import DataError
from repo_builder.core.tensors import TensorSpec
from repo_builder.datasets.source import Source

FILE = "jets.npz"


def read(*, inputs: tuple[TensorSpec, ...], data_dir: Path | None = None) -> Source:
    """Return the jets with their raw features, in the order of ``data/README.md``.

    Raises:
        DataError: The model has more than one input.
    """
    if len(inputs) != 1:
        raise DataError(f"the jets fill one input; the model has {len(inputs)}", where="data.source")
    with np.load(assets.packaged("data", FILE), allow_pickle=False) as stored:
        features, labels, classes = stored["features"], stored["labels"].astype(np.int64), stored["classes"]
    return Source(
        origin="jets", inputs={inputs[0].name: features}, labels=labels, classes=tuple(str(item) for item in classes)
    )
