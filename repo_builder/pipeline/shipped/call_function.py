"""A function of the user's, whose result is held against what the recipe says. Goes into a model's folder as it is."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Refused(Exception):  # noqa: N818 - an answer
    """A request cannot be answered; says why."""


class Step:
    """Calls a function.

    Args:
        folder: Where this file lies.
        settings: ``folder`` of the user's files (or None), ``module``, ``function``, ``arguments``, ``gives``: name,
            numpy type and shape of each array.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        module, name = settings["module"], settings["function"]
        loaded = _beside(folder / settings["folder"], module) if settings["folder"] else importlib.import_module(module)
        self._function, self._name = getattr(loaded, name), f"{module}:{name}"
        self._arguments, self._gives = settings["arguments"], settings["gives"]

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the function's arrays.

        Raises:
            Refused: It returns something else than the recipe says, or raises.
        """
        try:
            found = self._function(*arrays, **self._arguments)
        except Exception as error:  # whatever a user's function raises
            raise Refused(f"{self._name} failed: {type(error).__name__}: {error}") from error
        found = found if isinstance(found, tuple) else (found,)
        if len(found) != len(self._gives):
            raise Refused(f"{self._name} returned {len(found)} arrays, and the recipe says {len(self._gives)}")
        return tuple(
            self._checked(value, len(arrays[0]), *item) for value, item in zip(found, self._gives, strict=True)
        )

    def _checked(self, value: Any, count: int, name: str, dtype: str, shape: list[int]) -> Array:  # noqa: ANN401
        array = np.asarray(value)
        if dtype == "object" and array.dtype.kind in "OSU":
            array = array.astype(object)
        whole = [count, *shape]
        fits = array.ndim == len(whole) and all(want in (-1, got) for want, got in zip(whole, array.shape, strict=True))
        if array.dtype.name != dtype or not fits:
            told = f"{array.dtype.name}{list(array.shape)}"
            raise Refused(f"{self._name} returned {told} for '{name}', and the recipe says {dtype}{whole}")
        return np.ascontiguousarray(array)


def _beside(folder: Path, module: str) -> Any:  # noqa: ANN401 - a module
    """Import a file, and what it imports from beside it."""
    spec = importlib.util.spec_from_file_location(module, folder / f"{module}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no {module}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(folder))
    return loaded
