"""Encoded images and texts as they lie in files, one string a sample: data of a pipeline, and inputs of a load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repo_builder.core.archive import require_memory
from repo_builder.core.errors import DataError
from repo_builder.core.tensors import Array

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".txt")


def files_of(folder: Path) -> list[Path]:
    """Return the images and texts in a folder, in the order of their names."""
    there = (item for item in folder.iterdir() if not item.name.startswith("."))
    return sorted(item for item in there if item.suffix.lower() in SUFFIXES and item.is_file())


def contents(paths: Sequence[Path]) -> Array:
    """Return the contents of files, object ``(n, 1)`` of bytes.

    Raises:
        DataError: A file cannot be read, or all of them do not fit into memory.
    """
    try:
        require_memory(sum(path.stat().st_size for path in paths), f"{len(paths)} files", where=str(paths[0].parent))
        return column([path.read_bytes() for path in paths])
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(error.filename)) from None


def lines(path: Path) -> Array:
    """Return the lines of a file that are not blank, object ``(n, 1)`` of bytes.

    Raises:
        DataError: It cannot be read, is no UTF-8 or holds no text.
    """
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path)) from None
    texts = [line.encode() for line in found if line]
    if not texts:
        raise DataError("holds no text", where=str(path), hint="one text a line")
    return column(texts)


def column(items: Sequence[bytes]) -> Array:
    """Return strings as object ``(n, 1)``."""
    found = np.empty((len(items), 1), object)
    found[:, 0] = items
    return found
