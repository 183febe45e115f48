"""What a request brings to a model, held against what the model takes before it meets other requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from repo_builder.core.tensors import Array
from repo_builder.serve.backends.onnxruntime import signature
from repo_builder.serve.backends.onnxruntime.settings import Config
from repo_builder.serve.backends.onnxruntime.signature import Declared

Feed = dict[str, Array]  # input name → values

DTYPES: dict[str, str] = {
    "TYPE_BOOL": "bool",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
    "TYPE_STRING": "object",
    **{f"TYPE_{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
}


class Tensor(Protocol):
    """What is used of ``pb_utils.Tensor``."""

    def name(self) -> str:
        """Return its name."""

    def as_numpy(self) -> Array:
        """Return its values."""


class Taken(NamedTuple):
    """An input as the model takes it.

    Attributes:
        dtype: Its type.
        shape: Its whole shape; -1 stands for any size, also that of a batch.
        scalar: Whether the model takes the only element of it, without dimensions.
        text: Whether its elements are text.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    scalar: bool
    text: bool


class Inputs:
    """The inputs of a model.

    Args:
        config: The model's configuration.
        model: The inputs that the ONNX file declares, those with a value of their own included.
    """

    def __init__(self, config: Config, model: Sequence[Declared]) -> None:
        self._most = int(config["max_batch_size"])
        known = {item.name: item for item in model}
        self._taken = {item["name"]: self._take(item, known[item["name"]]) for item in signature.fed(config)}

    def feed(self, tensors: Iterable[Tensor]) -> Feed:
        """Return what a request brings.

        Raises:
            ValueError: It is not what the model takes.
        """
        found: Feed = {}
        rows = -1
        for tensor in tensors:
            name, array = tensor.name(), tensor.as_numpy()
            taken = self._taken[name]
            if array.dtype != taken.dtype:
                raise ValueError(f"the input '{name}' is {array.dtype}, and the model takes {taken.dtype}")
            if not _fits(array.shape, taken.shape):
                raise ValueError(f"the input '{name}' has the shape {list(array.shape)}, not {list(taken.shape)}")
            if self._most:
                if len(array) > self._most or rows not in (-1, len(array)):
                    raise ValueError(f"the input '{name}' has {len(array)} rows, of {self._most} or of another number")
                rows = len(array)
            if taken.text:
                array = decoded(array)
            found[name] = array.reshape(()) if taken.scalar else array
        return found

    def _take(self, item: Config, model: Declared) -> Taken:
        batched = self._most > 0
        dims = tuple(signature.model_dims(item))
        scalar = not batched and signature.is_scalar(item, model)
        dtype = np.dtype(DTYPES[item["data_type"]])
        return Taken(dtype, (-1, *dims) if batched else dims, scalar, item["data_type"] == "TYPE_STRING")


def decoded(array: Array) -> Array:
    """Return an array of str from one of UTF-8 bytes, as ONNX Runtime takes them.

    Raises:
        UnicodeDecodeError: They are not UTF-8; a ValueError.
    """
    flat = [item.decode() if isinstance(item, bytes) else item for item in array.ravel()]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(array.shape)


def groups(feeds: Mapping[int, Feed]) -> list[list[int]]:
    """Return the keys of the feeds that can be one batch: the same inputs, of equal shapes but for the first one."""
    found: dict[Any, list[int]] = {}
    for place, feed in feeds.items():
        key = tuple(sorted((name, array.shape[1:]) for name, array in feed.items()))
        found.setdefault(key, []).append(place)
    return list(found.values())


class Staging:
    """The buffer in which batches of one input are gathered; kept, and made anew for more rows or another shape."""

    def __init__(self) -> None:
        self._rows: Array = np.empty(0)

    def gather(self, arrays: Sequence[Array]) -> Array:
        """Return arrays of one dtype, and one shape but for the first dimension, as one; valid until the next call."""
        first = arrays[0]
        if first.dtype == object:
            return np.concatenate(arrays)
        rows = sum(map(len, arrays))
        if self._rows.shape[1:] != first.shape[1:] or len(self._rows) < rows or self._rows.dtype != first.dtype:
            self._rows = np.empty((rows, *first.shape[1:]), first.dtype)
        return np.concatenate(arrays, out=self._rows[:rows])


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, size) for size, want in zip(shape, wanted, strict=True))
