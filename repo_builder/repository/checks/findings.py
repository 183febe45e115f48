"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a check has found.

    Attributes:
        level: ``error``: Triton will not load the model, or will answer wrongly. ``warning``: it loads, and something
            does not do what it seems to. ``info``: worth knowing.
        path: The file or folder, relative to the repository.
        message: What is there, one sentence.
        hint: What to do about it; empty where there is nothing to do.
    """

    level: Literal["error", "warning", "info"]
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        """Return the finding as one line."""
        text = f"{self.path}: {self.message}"
        return f"{text} → {self.hint}" if self.hint else text


@dataclass(frozen=True, kw_only=True)
class Missing(Finding):
    """An error that is no fault of the repository: a library or program is not installed."""


def error(path: str, message: str, hint: str = "") -> Finding:
    """Return what keeps Triton from loading the model, or from answering rightly."""
    return Finding(level="error", path=path, message=message, hint=hint)


def missing(path: str, message: str, hint: str = "") -> Missing:
    """Return which library or program is not installed, where that keeps Triton from loading the model."""
    return Missing(level="error", path=path, message=message, hint=hint)


def warning(path: str, message: str, hint: str = "") -> Finding:
    """Return what does not do what it seems to."""
    return Finding(level="warning", path=path, message=message, hint=hint)


def info(path: str, message: str, hint: str = "") -> Finding:
    """Return what is worth knowing."""
    return Finding(level="info", path=path, message=message, hint=hint)
