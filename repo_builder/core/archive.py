"""Arrays out of an .npz file, of which nothing is believed: what is not asked for is not read, and sizes are bounded.

The format: a zip archive with one member ``NAME.npy`` an array, each a header that gives dtype and shape, then the
values (numpy's NEP 1). A member's header, the size that the archive gives for it and the bytes that it takes there must
agree before anything of that size is allocated.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from repo_builder.core import environment, files
from repo_builder.core.errors import DataError
from repo_builder.core.tensors import Array

_SUFFIX = ".npy"
_SLACK = 1 << 16  # bytes: headers, and the last block
# The most that a byte can become; of the others (bzip2, lzma) the free memory alone is the bound.
_MOST_RATIO = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}  # deflate's: see zlib's documentation


class Archive:
    """An open .npz file.

    Attributes:
        names: Its arrays, in the order of the file.
    """

    def __init__(self, path: Path, packed: zipfile.ZipFile) -> None:
        self._path, self._packed = path, packed
        self._members = {
            item.filename.removesuffix(_SUFFIX): item for item in packed.infolist() if item.filename.endswith(_SUFFIX)
        }
        self.names = tuple(self._members)

    def read(self, name: str) -> Array:
        """Return one array.

        Raises:
            DataError: It is damaged, encrypted, of Python objects, or larger than the free memory.
        """
        member = self._members[name]
        if member.flag_bits & 1:
            hint = "numpy reads no encrypted archives: save it again with numpy.savez"
            raise DataError(f"the array '{name}' in it is encrypted", where=str(self._path), hint=hint)
        with _damaged(self._path, name), self._packed.open(member) as stream:
            dtype, shape = _header(stream)
            head = stream.tell()
        size = math.prod(shape) * dtype.itemsize
        require_memory(math.prod(shape) * max(1, dtype.itemsize), f"the array '{name}'", where=str(self._path))
        packed = member.compress_size * _MOST_RATIO.get(member.compress_type, size) + _SLACK
        if not size == member.file_size - head <= packed:
            raise DataError(
                f"is damaged: the array '{name}' {dtype}{list(shape)} has {size} bytes, its file {member.file_size}",
                where=str(self._path),
                hint="copy or save it again",
            )
        with _damaged(self._path, name), self._packed.open(member) as stream:
            values: Array = npy.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]
        return values


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an .npz file.

    Raises:
        DataError: It is none.
    """
    with files.parsing(path, DataError, "is no .npz file of plain arrays"):
        packed = zipfile.ZipFile(path)
    with packed:
        yield Archive(path, packed)


def read_all(path: Path) -> dict[str, Array]:
    """Return all arrays of an .npz file, by name and in its order.

    Raises:
        DataError: It is damaged, or larger than the free memory.
    """
    with opened(path) as stored:
        return {name: stored.read(name) for name in stored.names}


def require_memory(size_bytes: int, what: str, *, where: str) -> None:
    """Refuse what would not fit into memory, before it is allocated.

    Raises:
        DataError: More bytes are needed than are free.
    """
    free = environment.memory_free_bytes()
    if free is not None and size_bytes > free:
        raise DataError(f"{what} takes {size_bytes / 1e9:.3g} GB, {free / 1e9:.3g} GB of memory are free", where=where)


def _header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and shape of the array that starts here."""
    version = npy.read_magic(stream)  # type: ignore[no-untyped-call]
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has version {version} of the format")
    read: Any = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    if any(side < 0 for side in shape):
        raise ValueError(f"its shape is {list(shape)}")
    return dtype, shape


def _damaged(path: Path, name: str) -> AbstractContextManager[None]:
    said = f"is no .npz file of plain arrays: '{name}' cannot be read"
    return files.parsing(path, DataError, said, hint="save it again with numpy.savez")
