"""The outputs that forms of a model gave on the held-out samples, kept beside the artifact for what derives from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from repo_builder.core import archive
from repo_builder.core.errors import DataError, RepositoryError
from repo_builder.core.tensors import Array

OUTPUTS = "outputs.npz"
Forms = Mapping[str, Mapping[str, Array]]  # form → output name → values (n, ...)


def save(folder: Path, forms: Forms) -> None:
    """Write forms' outputs into an artifact's folder; strings as numpy's own, which need no pickle."""
    arrays = {
        f"{form}/{name}": values.astype(str) if values.dtype.kind in "OS" else values
        for form, outputs in forms.items()
        for name, values in outputs.items()
    }
    np.savez(folder / OUTPUTS, **arrays)


def load(folder: Path) -> dict[str, dict[str, Array]]:
    """Return the forms' outputs that ``save`` wrote, in their order; nothing where there are none.

    Raises:
        RepositoryError: The file is damaged.
    """
    path = folder / OUTPUTS
    found: dict[str, dict[str, Array]] = {}
    if not path.is_file():
        return found
    try:
        saved = archive.read_all(path)
    except DataError as error:
        raise RepositoryError(error.message, where=str(path), hint="build again with --force") from None
    for key, values in saved.items():
        form, _, name = key.partition("/")
        found.setdefault(form, {})[name] = values
    return found
