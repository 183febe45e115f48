"""``digits``: 1,797 handwritten digits of 8×8 pixels, shipped with the package (see data/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repo_builder.core import assets
from repo_builder.core.errors import DataError
from repo_builder.core.tensors import Array, TensorSpec
from repo_builder.datasets.preprocessing import normalise, resize
from repo_builder.datasets.source import Source

FILE = "digits.npz"
_LEVELS = 16  # a pixel counts the dark points of a 4×4 cell


def read(*, inputs: tuple[TensorSpec, ...], data_dir: Path | None = None) -> Source:
    """Return the digits, brought to the size of the model's one image input (channels, height, width).

    Pixels 0..16 are resized bilinearly, scaled to [-1, 1] and repeated over the channels.

    Raises:
        DataError: The model has other inputs than one image.
    """
    if len(inputs) != 1 or len(inputs[0].shape) != 3 or min(inputs[0].shape) < 1:
        shown = ", ".join(map(str, inputs))
        raise DataError(f"the digits are images; the model takes {shown}", where="data.source")
    name, (channels, height, width) = inputs[0].name, inputs[0].shape

    def prepare(raw: dict[str, Array]) -> dict[str, Array]:
        images = normalise(resize(raw[name].astype(np.float32), height, width), scale=2 / _LEVELS, mean=1.0)
        return {name: np.repeat(images[:, None], channels, axis=1)}

    with np.load(assets.packaged("data", FILE), allow_pickle=False) as stored:
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    return Source(origin="digits", inputs={name: images}, labels=labels, classes=tuple("0123456789"), prepare=prepare)
