"""Files of raw tensor data beside a model: those of warm-up and of initial states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from repo_builder.core.tensors import DType
from repo_builder.repository import protobuf
from repo_builder.repository.checks.findings import Finding, error, warning
from repo_builder.repository.checks.folder import ModelFolder

_SIZES = {dtype.config: dtype.numpy.itemsize for dtype in DType if dtype is not DType.STRING}
_PREFIX_BYTES = 4  # the length before each text, little-endian


def file(folder: ModelFolder, name: str, tensor: Any, *, used_by: str) -> Iterator[Finding]:  # noqa: ANN401 - a message
    """Check that a file holds a tensor.

    Args:
        folder: The model's folder.
        name: The file, relative to it.
        tensor: What has ``data_type`` and ``dims``.
        used_by: What names the file.
    """
    place, where = folder.path / name, f"{folder.name}/{name}"
    if not place.is_file():
        yield error(where, f"is missing, and {used_by} names it")
        return
    kind, elements = protobuf.type_name(tensor.data_type), math.prod(tensor.dims)
    if any(size < 1 for size in tensor.dims):
        return  # has its own finding
    if kind == "TYPE_STRING":
        yield from _texts(where, place.read_bytes(), elements)
        return
    wanted, there = _SIZES.get(kind, 0) * elements, place.stat().st_size
    told = f"has {there} bytes, and {used_by} takes {wanted} ({elements} of {kind})"
    if there < wanted:
        yield error(where, told, "write the whole tensor into it")
    elif there > wanted and wanted:
        yield warning(where, f"{told}: the rest is not read")


def _texts(where: str, content: bytes, elements: int) -> Iterator[Finding]:
    """Check the framing of texts: each behind its length in four bytes."""
    place, found = 0, 0
    while place + _PREFIX_BYTES <= len(content):
        place += _PREFIX_BYTES + int.from_bytes(content[place : place + _PREFIX_BYTES], "little")
        found += 1
    if place != len(content):
        yield error(where, "does not hold texts as Triton takes them", "write each behind its length in four bytes")
    elif found != elements:
        yield error(where, f"holds {found} texts, and the tensor {elements}")
