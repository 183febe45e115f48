"""Where files lie unless something else is said; paths, servers and numbers as callers give them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

from repo_builder.core.errors import MeasureError
from repo_builder.serve import Server

REPOSITORY, WORK = "model_repository", "build"
T = TypeVar("T")


def path(value: str | Path | None) -> Path | None:
    """Return a path, or None where there is none."""
    return None if value is None else Path(value)


def servers(
    server: Server | None, url: str | None, metrics_url: str | None, protocol: str
) -> tuple[str | None, str | None]:
    """Return where requests go and where the metrics are.

    Raises:
        MeasureError: Two servers are named.
    """
    if server is None:
        return url, metrics_url
    if url is not None:
        raise MeasureError("server and url are two servers", where="url", hint="give one of them")
    own = server.metrics_url.removeprefix("http://").partition("/")[0]
    return server.http_url if protocol == "http" else server.grpc_url, metrics_url or own


def whole(value: float, name: str, least: int = 0) -> int:
    """Return a whole number.

    Raises:
        MeasureError: It is none, or below the least.
    """
    if not least <= value < math.inf or value != int(value):
        raise MeasureError(f"{value!r} is not a whole number from {least}", where=name)
    return int(value)


def positive(value: float, name: str) -> float:
    """Return a number above 0.

    Raises:
        MeasureError: It is none.
    """
    if not 0 < value < math.inf:
        raise MeasureError(f"{value!r} is not a number above 0", where=name)
    return value


def one_of(words: tuple[T, ...], value: T, name: str) -> T:
    """Return a word.

    Raises:
        MeasureError: It is none of them.
    """
    if value not in words:
        raise MeasureError(f"{value!r} is none of {', '.join(map(str, words))}", where=name)
    return value
