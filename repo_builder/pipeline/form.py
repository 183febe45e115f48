"""What a step is to the rest: which tensors it takes and gives, and its ONNX form or its Python form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.pipeline.writer import Writer

# A type and a shape, batch left out.
Kind = tuple[DType, tuple[int, ...]]
# what clients send of an encoded image or a text: one string a sample
ONE_STRING: Kind = (DType.STRING, (1,))
_CHANNELS = (1, 3, 4)  # of images


class Unfit(Exception):  # noqa: N818 - a finding; the chain says where
    """A step cannot take what it is given; the message continues "... (resize)"."""


@dataclass(frozen=True, kw_only=True)
class Python:
    """A step that runs as Python, in Triton's Python backend and here.

    Attributes:
        file: Its module below ``pipeline/shipped``, which goes into the model's folder as ``step.py``.
        settings: The recipe's table → JSON values that go beside it.
        ship: Puts what else it reads into the folder; None where there is nothing.
        extra: The extra of repo-builder that installs its libraries; empty where it needs none.
        libraries: The libraries, as they are imported.
        alone: Whether samples may come out in different sizes, so that each is run by itself here.
    """

    file: str
    settings: Callable[[Any], dict[str, Any]]
    ship: Callable[[Any, Path], None] | None = None
    extra: str = ""
    libraries: tuple[str, ...] = ()
    alone: Callable[[Any], bool] = lambda _: False


@dataclass(frozen=True, kw_only=True)
class Form:
    """A kind of step.

    Attributes:
        takes: How many tensors, at least and at most.
        names: Names of what it gives, where the recipe has none; none at all keeps the name of what it takes.
        gives: The recipe's table and the tensors taken → types and shapes of what it gives. Raises ``Unfit``.
        write: Its nodes: the recipe's table, where they go, the names and kinds of what it takes, the names of the
            classes → names of what it gives; None for a Python step.
        python: Its Python form; None for an ONNX step.
        reads: Name of what a client sends to it where nothing comes before; empty where that has to be declared.
        also: Name of a tensor that it takes beside what the step before gives.
    """

    takes: tuple[int, int] = (1, 1)
    names: tuple[str, ...] = ()
    gives: Callable[[Any, Sequence[Kind]], Sequence[Kind]]
    write: Callable[[Any, Writer, Sequence[tuple[str, Kind]], tuple[str, ...]], Sequence[str]] | None = None
    python: Python | None = None
    reads: str = ""
    also: str = ""


def told(kind: Kind) -> str:
    """Return a kind as in ``fp32[3, 32, 32]``."""
    return f"{kind[0].value}{list(kind[1])}"


def kind_of(spec: TensorSpec) -> Kind:
    """Return a tensor's kind."""
    return spec.dtype, spec.shape


def numbers(kind: Kind) -> None:
    """Refuse what holds no numbers.

    Raises:
        Unfit: That is so.
    """
    if kind[0] in (DType.STRING, DType.BF16):
        raise Unfit("takes numbers")


def image(kind: Kind, layout: str) -> tuple[int, int, int]:
    """Return rows, columns and channels of an image, -1 for what varies.

    Raises:
        Unfit: It is none.
    """
    numbers(kind)
    if len(kind[1]) != 3:
        raise Unfit("takes an image of three dimensions")
    channels, rows, columns = kind[1] if layout == "chw" else (kind[1][2], kind[1][0], kind[1][1])
    if layout == "hwc" and channels > 4 >= kind[1][0] > 0:
        raise Unfit('takes channels last, or says layout = "chw"')
    if layout == "chw" and kind[1][2] in _CHANNELS and kind[1][0] not in _CHANNELS:
        raise Unfit('takes channels first, or says layout = "hwc"')
    return rows, columns, channels


def shaped(rows: int, columns: int, channels: int, layout: str) -> tuple[int, int, int]:
    """Return an image's shape."""
    return (channels, rows, columns) if layout == "chw" else (rows, columns, channels)
