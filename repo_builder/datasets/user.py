"""A user's own data: .npz, .csv, a folder of images per class, or ``module:function``.

All of them take the argument ``split``: ``"auto"`` divides the samples by the fractions of the recipe, ``"test"`` holds
every sample out, which is what a file of test samples alone needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repo_builder.core import archive, loading
from repo_builder.core import encoded as core_encoded
from repo_builder.core.errors import DataError, RecipeError, RepoBuilderError, did_you_mean, first_line
from repo_builder.core.recipe import DataSpec
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.datasets import encoded, table
from repo_builder.datasets import given as held
from repo_builder.datasets.labels import class_numbers
from repo_builder.datasets.preprocessing import normalise
from repo_builder.datasets.source import Source

_INPUT_KEYS = ("x", "X")  # in place of the input's name, where the model has one
_LAYOUTS = ("chw", "hwc")


def read(
    spec: DataSpec, *, inputs: tuple[TensorSpec, ...], data_dir: Path | None = None, known: Iterable[str] = ()
) -> Source:
    """Read the data that ``spec.source`` names.

    Args:
        spec: The source and its arguments.
        inputs: Inputs of the model.
        data_dir: Where a relative path that is not in the current folder is looked for.
        known: Names of built-in data sets, for the did-you-mean.

    Raises:
        DataError: There is no such data, or it cannot be understood.
        RecipeError: The arguments are wrong, or there is no such function.
    """
    arguments = dict(spec.arguments)
    split = arguments.pop("split", "auto")
    if split not in ("auto", "test"):
        raise RecipeError(
            f"'{split}' is not 'auto' or 'test'", where="data.arguments.split", hint='"test" holds every sample out'
        )
    path = Path(spec.source)
    if not path.exists() and data_dir is not None:
        path = data_dir / path
    if len(inputs) == 1 and inputs[0].dtype is DType.STRING and (path.is_dir() or path.suffix == ".txt"):
        reader: Callable[..., Source] = partial(encoded.read, path=path)
    elif path.is_dir():
        with loading.needs("images", what="reading a folder of images"):
            from repo_builder.datasets.folder import read as read_folder
        reader = partial(read_folder, path=path)
    elif path.suffix.lower() in _READERS:
        if not path.is_file():
            raise DataError(f"there is no file '{path}'", where="data.source")
        reader = partial(_READERS[path.suffix.lower()], path=path)
    elif ":" in spec.source:
        reader = partial(read_function, spec.source, arguments)
        arguments = {}
    else:
        raise DataError(
            f"there is no data set and no folder '{spec.source}'",
            where="data.source",
            hint=f"{did_you_mean(spec.source, known)} (your own is a .npz or .csv file, a folder or module:function)",
        )
    source: Source = loading.call(reader, arguments, where="data.arguments", inputs=inputs)
    return dataclasses.replace(source, own_test=0) if split == "test" else source


def read_npz(
    path: Path,
    inputs: tuple[TensorSpec, ...],
    *,
    classes: Sequence[str] = (),
    layout: str = "chw",
    scale: float = 1.0,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> Source:
    """Read arrays by name: one for each input (or ``x`` for an only one), and ``y`` or ``labels`` if there are any.

    Args:
        path: The .npz file.
        inputs: Inputs of the model.
        classes: Names of the classes; the array ``classes`` of the file, or numbers, where they are left out.
        layout: ``chw``, or ``hwc`` for images whose channels come last.
        scale: See ``preprocessing.normalise``, which is applied to floating-point inputs only.
        mean: See there.
        std: See there.

    Raises:
        DataError: The file is damaged, holds Python objects or lacks an input.
    """
    if layout not in _LAYOUTS:
        raise RecipeError(
            f"'{layout}' is no layout", where="data.arguments.layout", hint=did_you_mean(layout, _LAYOUTS)
        )
    found = {}
    with archive.opened(path) as stored:
        for spec in inputs:
            keys = (spec.name, *_INPUT_KEYS) if len(inputs) == 1 else (spec.name,)
            key = _first(keys, stored.names)
            if key is None:
                holds = f"it holds: {', '.join(stored.names) or 'nothing'}"
                raise DataError(f"holds no array '{spec.name}'", where=str(path), hint=holds)
            found[spec.name] = np.atleast_1d(stored.read(key))
        used = {spec.name for spec in inputs}  # an input may be called y
        label = _first([key for key in held.LABELS if key not in used], stored.names)
        given = None if label is None else stored.read(label)
        stored_names = stored.read("classes") if not classes and "classes" in stored.names else np.array([], str)
    if stored_names.ndim != 1:
        raise DataError(f"the array 'classes' has the shape {list(stored_names.shape)}", where=str(path))
    names = tuple(classes) or tuple(str(item) for item in stored_names.tolist())
    hwc = layout == "hwc"
    floats = {spec.name for spec in inputs if spec.dtype.numpy.kind == "f"}

    def prepare(raw: dict[str, Array]) -> dict[str, Array]:
        turned = {name: np.moveaxis(item, -1, 1) if hwc and item.ndim > 2 else item for name, item in raw.items()}
        return {
            name: normalise(item, scale=scale, mean=mean, std=std) if name in floats else item
            for name, item in turned.items()
        }

    labels, names = class_numbers(given, names, origin=str(path))
    return Source(origin=str(path), inputs=found, labels=labels, classes=names, prepare=prepare)


def _first(keys: Iterable[str], names: Iterable[str]) -> str | None:
    """Return the first of the keys that is among the names."""
    known = set(names)
    return next((key for key in keys if key in known), None)


def read_function(source: str, arguments: dict[str, Any], inputs: tuple[TensorSpec, ...]) -> Source:
    """Call ``module:function(**arguments)``; it returns ``(inputs, labels)`` or ``(inputs, labels, classes)``.

    ``inputs`` is an array, or arrays by input name, ready for the model; ``labels`` may be None.

    Raises:
        RecipeError: The function is not there or takes other arguments.
        DataError: It returns something else.
    """
    function = loading.load_user(source, where="data.source")
    try:
        result = loading.call(function, arguments, where="data.arguments")
    except RepoBuilderError:
        raise
    except Exception as error:  # the user's code may raise anything
        said = f"raised {type(error).__name__}: {first_line(error)}"
        raise DataError(said, where=source, hint="--debug shows where") from error
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise DataError(
            f"returned {type(result).__name__}, not (inputs, labels)", where=source, hint="labels may be None"
        )
    given, labels, *names = result
    arrays = given if isinstance(given, dict) else {inputs[0].name: given}
    classes = tuple(str(item) for item in names[0]) if names else ()
    numbers, classes = class_numbers(None if labels is None else np.asarray(labels), classes, origin=source)
    return Source(
        origin=source,
        inputs={name: _array(item) for name, item in arrays.items()},
        labels=numbers,
        classes=classes,
    )


def _array(given: Any) -> Array:  # noqa: ANN401 - whatever a user's function returns
    """Return an array; a list of bytes stays as it is, where numpy's own strings would lose NULs at the end."""
    if isinstance(given, list | tuple) and given and all(isinstance(item, bytes) for item in given):
        return core_encoded.column(given)
    return np.asarray(given)


_READERS: dict[str, Callable[..., Source]] = {".npz": read_npz, ".csv": table.read}
