"""A folder with one sub-folder a class, full of images. Needs Pillow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from repo_builder.core import files, progress
from repo_builder.core.archive import require_memory
from repo_builder.core.errors import DataError
from repo_builder.core.tensors import Array, TensorSpec
from repo_builder.datasets.preprocessing import normalise
from repo_builder.datasets.source import Source

_MODES = {1: "L", 3: "RGB"}


def read(
    path: Path,
    inputs: tuple[TensorSpec, ...],
    *,
    scale: float = 1 / 255,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> Source:
    """Read every image of every class, brought to the size of the model's one image input (channels, height, width).

    Classes and images are in the order of their names. An image becomes RGB, or grey for one channel, and is resized
    with Pillow's bilinear filter, whatever its proportions.

    Args:
        path: The folder.
        inputs: The model's image input.
        scale: See ``preprocessing.normalise``; 8-bit pixels go to [0, 1] by default.
        mean: See there; one a channel for the usual normalisation.
        std: See there.

    Raises:
        DataError: No classes, a class without images, a file that is no image, or a model that takes none.
    """
    spec = inputs[0]
    if len(inputs) != 1 or len(spec.shape) != 3 or spec.shape[0] not in _MODES or min(spec.shape) < 1:
        raise DataError(
            f"images fill one input of 1 or 3 channels and a fixed size, not {', '.join(map(str, inputs))}",
            where=str(path),
        )
    with files.parsing(path, DataError, "cannot be listed"):
        folders, found = _listed(path)
    if not folders:
        raise DataError("there is no sub-folder", where=str(path), hint="put the images of each class into one")
    for folder, images in zip(folders, found, strict=True):
        if not images:
            raise DataError("holds no images", where=str(folder), hint="every sub-folder is a class; remove it, if not")
    paths = [item for images in found for item in images]
    require_memory(len(paths) * math.prod(spec.shape), f"{len(paths)} images of {spec}", where=str(path))
    pixels = np.stack([_pixels(item, spec.shape) for item in progress.bar(paths, "reading images")])

    def prepare(raw: dict[str, Array]) -> dict[str, Array]:
        return {spec.name: normalise(raw[spec.name], scale=scale, mean=mean, std=std)}

    return Source(
        origin=str(path),
        inputs={spec.name: pixels},
        labels=np.repeat(np.arange(len(folders)), [len(images) for images in found]),
        classes=tuple(folder.name for folder in folders),
        prepare=prepare,
        place=lambda number: str(paths[number].relative_to(path)),
    )


def _listed(path: Path) -> tuple[list[Path], list[list[Path]]]:
    """Return the classes' folders and the images of each, in the order of their names."""
    suffixes = set(Image.registered_extensions())
    folders = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    found = [
        sorted(item for item in folder.iterdir() if item.suffix.lower() in suffixes and not item.name.startswith("."))
        for folder in folders
    ]
    return folders, found


def _pixels(path: Path, shape: tuple[int, ...]) -> Array:
    """Return one image as uint8 (channels, height, width)."""
    channels, height, width = shape
    said = files.parsing(path, DataError, "is no readable image", hint="remove or replace it")
    with said, warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")  # of doubtful but readable files
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        resized = image.convert(_MODES[channels]).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
