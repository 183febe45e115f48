"""Files as they are, for a model whose pipeline takes encoded images or texts: nothing is decoded here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repo_builder.core import encoded
from repo_builder.core.errors import DataError
from repo_builder.core.tensors import TensorSpec
from repo_builder.datasets.source import Source


def read(path: Path, inputs: tuple[TensorSpec, ...]) -> Source:
    """Read a folder with one sub-folder a class, full of images or .txt files; or a .txt of one text a line.

    Classes and files are in the order of their names; lines have no labels.

    Args:
        path: The folder, or the .txt file.
        inputs: The model's one input, a string.

    Raises:
        DataError: There are no classes, a class without files, or a file that cannot be read.
    """
    name = inputs[0].name
    if path.is_file():
        texts = encoded.lines(path)
        return Source(
            origin=str(path), inputs={name: texts}, labels=None, classes=(), place=lambda number: f"text {number + 1}"
        )
    folders = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not folders:
        raise DataError("there is no sub-folder", where=str(path), hint="put the files of each class into one")
    found = [encoded.files_of(folder) for folder in folders]
    for folder, files in zip(folders, found, strict=True):
        if not files:
            known = ", ".join(encoded.SUFFIXES)
            raise DataError("holds no files", where=str(folder), hint=f"every sub-folder is a class, of files {known}")
    paths = [item for files in found for item in files]
    return Source(
        origin=str(path),
        inputs={name: encoded.contents(paths)},
        labels=np.repeat(np.arange(len(folders)), [len(files) for files in found]),
        classes=tuple(folder.name for folder in folders),
        place=lambda number: str(paths[number].relative_to(path)),
    )
