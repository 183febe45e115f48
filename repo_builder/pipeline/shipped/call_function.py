"""A function of the user's, whose result is held against what the recipe says. Goes into a model's folder as it is."""

import importlib
import importlib.util
import sys

import numpy as np


class Refused(Exception):
    """A request cannot be answered; says why."""


class Step:
    """Calls a function.

    Args:
        folder: Where this file lies.
        settings: ``folder`` of the user's files (or None), ``module``, ``function``, ``arguments``, ``gives``: name,
            numpy type and shape of each array.
    """

    def __init__(self, folder, settings):
        module, name = settings["module"], settings["function"]
        if settings["folder"]:
            beside = folder / settings["folder"]
            sys.path.insert(0, str(beside))  # for what it imports from beside it
            spec = importlib.util.spec_from_file_location(module, beside / f"{module}.py")
            loaded = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(loaded)
            finally:
                sys.path.remove(str(beside))
        else:
            loaded = importlib.import_module(module)
        self._function, self._name = getattr(loaded, name), f"{module}:{name}"
        self._arguments, self._gives = settings["arguments"], settings["gives"]

    def __call__(self, *arrays):
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
        return tuple(self._checked(value, len(arrays[0]), *item) for value, item in zip(found, self._gives))

    def _checked(self, value, count, name, dtype, shape):
        array = np.asarray(value)
        if dtype == "object":
            array = array.astype(object)
        fits = array.ndim == len(shape) + 1 and all(want in (-1, got) for want, got in zip(shape, array.shape[1:]))
        if array.dtype.name != dtype or not fits or array.shape[0] != count:
            told = f"{array.dtype.name}{list(array.shape)}"
            raise Refused(f"{self._name} returned {told} for '{name}', and the recipe says {dtype}{[count, *shape]}")
        return np.ascontiguousarray(array)
