"""The error tree. Every error a user can cause is one of these, with one exit code a branch.

    RepoBuilderError
    ├── CheckFailed            1   findings or a regression: the tool worked, the thing checked did not
    │                          2   reserved: a misuse of the command line (click)
    ├── RecipeError            3   recipe unknown, not TOML, misspelt key, rule that matches no layer
    ├── DataError              4   data set missing, empty, NaN, wrong shape, wrong checksum
    ├── ModelError             5   architecture unknown, checkpoint missing or of other shapes
    ├── QuantizeError          6   calibration impossible, layer that cannot take the precision
    ├── ExportError            7   ONNX export or Q/DQ check failed
    ├── CompileError           8   target missing on this machine, parser refusal, precision not as asked
    ├── RepositoryError        9   model repository or config.pbtxt that cannot be written or understood
    ├── ServeError            10   port in use, model not ready in time, server died
    ├── MeasureError          11   server gone in mid-run, wrong input name, wrong shape of a response
    ├── OutputError           12   a file or folder that cannot be written
    ├── MissingDependency     13   a library or program that is not installed
    ├── DepartureError        14   a built form departs from the one before it, and nothing was placed
    └── ObjectiveMissed       15   no serving configuration that was tried keeps the limit asked for
                              70   a bug: what nothing here foresaw (``cli/bugs.py``)
                             130   interrupted by Ctrl-C

A message is one sentence that says what and where; ``hint`` says what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RepoBuilderError(Exception):
    """Base of every error that repo-builder raises on purpose.

    Args:
        message: What went wrong, one sentence, naming the value that was wrong.
        where: The place to look at: a recipe key path, a file, a layer, a URL.
        hint: What to do next, ready to be followed.
    """

    exit_code = 70

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Return ``where: message; hint`` with the parts that are there."""
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} → {self.hint}" if self.hint else text


class CheckFailed(RepoBuilderError):  # noqa: N818 - the tool did its work; what it checked has findings
    """What was checked did not hold."""

    exit_code = 1


class RecipeError(RepoBuilderError):
    """A recipe that is unknown or cannot be understood."""

    exit_code = 3


class DataError(RepoBuilderError):
    """Data that is missing, damaged or of another shape than the model's input."""

    exit_code = 4


class ModelError(RepoBuilderError):
    """A model or checkpoint that is missing or does not fit."""

    exit_code = 5


class QuantizeError(RepoBuilderError):
    """A layer or a calibration that cannot be quantized as asked."""

    exit_code = 6


class ExportError(RepoBuilderError):
    """A model that cannot be exported to clean ONNX."""

    exit_code = 7


class CompileError(RepoBuilderError):
    """A graph that the compile target refuses, or a target that is not here."""

    exit_code = 8


class RepositoryError(RepoBuilderError):
    """A model repository that cannot be read or written."""

    exit_code = 9


class ServeError(RepoBuilderError):
    """A server that did not start, stay or stop."""

    exit_code = 10


class MeasureError(RepoBuilderError):
    """A measurement that could not be finished."""

    exit_code = 11


class OutputError(RepoBuilderError):
    """A path that cannot be written."""

    exit_code = 12


class MissingDependency(RepoBuilderError):  # noqa: N818 - reads as what it is
    """A library or program that is not installed."""

    exit_code = 13


class DepartureError(RepoBuilderError):
    """A form of the model that departs from the one before it by more than is accepted."""

    exit_code = 14


class ObjectiveMissed(RepoBuilderError):  # noqa: N818 - reads as what it is
    """A limit that no serving configuration kept."""

    exit_code = 15


def did_you_mean(word: str, known: Iterable[str], *, most: int = 3) -> str:
    """Return ``did you mean 'x'?`` for the closest known words, else a list of what there is.

    Args:
        word: What the user wrote.
        known: What would have been right.
        most: How many suggestions at the most.
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=most, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{name}'" for name in close) + "?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:12])
    return f"there are: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error that says anything, else the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
