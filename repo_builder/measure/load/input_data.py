"""Inputs from a file: a .npz of arrays by input name, the JSON of perf_analyzer's ``--input-data``, files as they are.

A folder of images or texts, and a .txt of one text a line, are sent as they lie there: what pipelines take.
"""

from __future__ import annotations

import base64
import binascii
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repo_builder.core import encoded
from repo_builder.core.errors import DataError, MeasureError, did_you_mean
from repo_builder.core.foreign import parsed
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.measure.wire.messages import from_bytes
from repo_builder.measure.wire.model import ServedModel

_FORMAT = '{"data": [{"INPUT": [1, 2, 3]}, {"INPUT": {"content": [...], "shape": [3]}}]}'


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a file holds.

    Attributes:
        samples: By input name ``(n, *shape)``, or a list of n arrays where they have different shapes.
        streams: Number of samples of each sequence; empty where the file makes none.
    """

    samples: dict[str, Array | list[Array]]
    streams: tuple[int, ...] = ()


def read(path: Path, model: ServedModel, shapes: Mapping[str, Sequence[int]]) -> Given:
    """Read a file of inputs.

    Args:
        path: A ``.npz``, JSON, a ``.txt``, or a folder.
        model: Whose inputs.
        shapes: Shapes, batch left out, of inputs with dynamic dimensions, where the file names none.

    Raises:
        MeasureError: It cannot be read, or does not hold the model's inputs; the entry is named.
    """
    specs = {item.name: item for item in model.inputs}
    try:
        if path.is_dir() or path.suffix == ".txt":
            given = Given(samples=_read_files(path, specs))
        elif path.suffix == ".npz":
            given = Given(samples=_read_npz(path, specs))
        else:
            given = _read_json(parsed(json.loads, path.read_text(encoding="utf-8")), specs, shapes)
    except (OSError, ValueError, EOFError, RecursionError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        said = str(error) or type(error).__name__
        raise MeasureError(
            f"cannot be read ({said})", where=str(path), hint=f"a .npz by input name, or {_FORMAT}"
        ) from None
    except DataError as error:
        raise MeasureError(error.message, where=error.where, hint=error.hint) from None
    except MeasureError as error:
        raise MeasureError(
            error.message, where=f"{path}: {error.where}" if error.where else str(path), hint=error.hint
        ) from None
    missing = set(specs) - model.optional - set(given.samples)
    if missing:
        raise MeasureError(f"lacks the input '{min(missing)}'", where=str(path))
    if not min((len(item) for item in given.samples.values()), default=0):
        raise MeasureError("holds no inputs", where=str(path), hint=_FORMAT)
    return given


def _read_files(path: Path, specs: Mapping[str, TensorSpec]) -> dict[str, Array | list[Array]]:
    """Return files as they are, or lines of text, for a model of one string a sample."""
    texts = [spec for spec in specs.values() if spec.dtype is DType.STRING and set(spec.shape) <= {1, -1}]
    if len(texts) != 1:
        takes = ", ".join(map(str, specs.values()))
        raise MeasureError(f"files fill one input of one string a sample, and the model takes {takes}")
    if path.is_file():
        found = encoded.lines(path)
    else:
        below = [item for item in sorted(path.iterdir()) if item.is_dir()]
        paths = encoded.files_of(path) or [item for folder in below for item in encoded.files_of(folder)]
        if not paths:
            raise MeasureError("holds no files", hint=f"files that end in {', '.join(encoded.SUFFIXES)}")
        found = encoded.contents(paths)
    return {texts[0].name: found.reshape(len(found), *(1 for _ in texts[0].shape))}


def _read_npz(path: Path, specs: Mapping[str, TensorSpec]) -> dict[str, Array | list[Array]]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
        # arrays that are no inputs are not unpacked
        found: dict[str, Array | list[Array]] = {}
        for name in set(saved.files) & set(specs):
            array = saved[name]
            if not array.ndim:
                raise MeasureError("is a single number, and not an array of samples", where=name)
            found[name] = array.astype(object) if array.dtype.kind in "US" else array
    return found


def _read_json(document: Any, specs: Mapping[str, TensorSpec], shapes: Mapping[str, Sequence[int]]) -> Given:  # noqa: ANN401
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list):
        raise MeasureError("has no list 'data'", hint=_FORMAT)
    nested = [item for item in data if isinstance(item, list)]
    if nested and len(nested) != len(data):
        raise MeasureError("mixes single requests and lists of them", where="data")
    entries = [entry for stream in nested for entry in stream] if nested else data
    rows: dict[str, list[Array]] = {}
    for place, entry in enumerate(entries):
        where = f"data[{place}]"
        if not isinstance(entry, dict) or (rows and set(entry) != set(rows)):
            raise MeasureError("does not hold the same inputs as those before", where=where)
        for name, value in entry.items():
            if name not in specs:
                raise MeasureError(f"the model has no input '{name}'", where=where, hint=did_you_mean(name, specs))
            rows.setdefault(name, []).append(_tensor(specs[name], value, shapes.get(name), f"{where}.{name}"))
    samples: dict[str, Array | list[Array]] = {}
    for name, arrays in rows.items():
        same = len({item.shape for item in arrays}) == 1
        samples[name] = np.stack(arrays) if same else arrays
    return Given(samples=samples, streams=tuple(len(item) for item in nested))


def _tensor(spec: TensorSpec, value: Any, given: Sequence[int] | None, where: str) -> Array:  # noqa: ANN401 - any JSON
    """Return one tensor, batch left out: flat or nested numbers, an object with content and shape, or base64."""
    content, shape = value, given
    if isinstance(value, dict):
        shape = value.get("shape", given)
        content = value.get("content", value.get("b64"))
    if not isinstance(shape, list | tuple | None) or not all(isinstance(item, int) for item in shape or ()):
        raise MeasureError("its shape is no list of whole numbers", where=where)
    if isinstance(value, dict) and "b64" in value:
        try:
            raw = base64.b64decode(str(content), validate=True)
        except binascii.Error as error:
            raise MeasureError(f"is no base64 ({error})", where=where) from None
        return from_bytes(raw, spec.dtype, _shape(spec, shape, -1, where))
    if not isinstance(content, list):
        content = [content]
    array = np.array(content, dtype=object) if spec.dtype is DType.STRING else np.asarray(content)
    if spec.dtype is not DType.STRING:
        if array.dtype.kind not in "biuf":
            raise MeasureError(f"does not hold numbers of the type {spec.dtype.value}", where=where)
        array = _cast(array, spec.dtype, where)
    if shape is None and array.ndim == len(spec.shape) and spec.fits(array.shape):
        return array
    return array.reshape(_shape(spec, shape, array.size, where))


def _cast(array: Array, dtype: DType, where: str) -> Array:
    if dtype is DType.BF16:
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(all="ignore"):
        cast: Array = array.astype(dtype.numpy)
    if dtype.numpy.kind in "iub" and not np.array_equal(cast, array):
        raise MeasureError(f"holds numbers that are no {dtype.value}", where=where)
    return cast


def _shape(spec: TensorSpec, given: Sequence[int] | None, size: int, where: str) -> tuple[int, ...]:
    shape = tuple(given if given is not None else spec.shape)
    if -1 in shape and size >= 0 and shape.count(-1) == 1:
        rest = int(np.prod([item for item in shape if item != -1], dtype=np.int64))
        if rest and size % rest == 0:
            shape = tuple(size // rest if item == -1 else item for item in shape)
    if -1 in shape or not spec.fits(shape):
        hint = f'give its shape, as in {{"content": [...], "shape": [...]}}, or --shape {spec.name}:...'
        raise MeasureError(f"does not fit the input {spec}", where=where, hint=hint)
    if size >= 0 and int(np.prod(shape, dtype=np.int64)) != size:
        raise MeasureError(f"holds {size} values, and {spec} takes {int(np.prod(shape, dtype=np.int64))}", where=where)
    return shape
