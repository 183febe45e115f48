"""Texts of others, read by the libraries for it: whatever they hold, what cannot be read is a ``ValueError``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", str, bytes)


def parsed(parse: Callable[[T], Any], text: T) -> Any:  # noqa: ANN401 - whatever the text holds
    """Return what ``json.loads`` or ``tomllib.loads`` makes of a text, whatever the text.

    Raises:
        ValueError: The text is not of that format, or is nested or has numbers beyond what Python takes.
    """
    try:
        return parse(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's guard, which tells of its own settings only
            raise ValueError("it holds a number of thousands of digits") from None
        raise
