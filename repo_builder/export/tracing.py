"""A torch module to ONNX by the older exporter, which records one run of it (TorchScript).

It writes what ran: a branch on the data or a size that Python computed is a constant of the graph from then on. torch
warns of those that it notices; they are handed on.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from repo_builder.core import onnx_files
from repo_builder.export.marks import DOMAIN, marked, traced
from repo_builder.export.naming import tidy
from repo_builder.export.plain import exportable

Axes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a trace gave.

    Attributes:
        model: The graph, its layers named.
        frozen: For each value that torch warned of, as it became a constant of the graph, its place and the warning.
    """

    model: onnx.ModelProto
    frozen: tuple[str, ...] = ()


def trace(
    module: nn.Module,
    given: tuple[Tensor, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Axes,
    opset: int,
) -> Trace:
    """Return a module as ONNX.

    Args:
        module: The network, in eval mode.
        given: Inputs that are run.
        inputs: Their names.
        outputs: Names of the outputs.
        axes: Tensor → axis that varies → its name.
        opset: Version of the default operator set.

    Raises:
        Exception: Of any kind: the exporter raises what it likes.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        exportable(module, outputs),
        marked(module, traced),
        warnings.catch_warnings(record=True) as said,
        torch.no_grad(),
        _unprinted(),
    ):
        raw = Path(folder) / "raw.onnx"
        warnings.simplefilter("always")
        torch.onnx.export(
            module,
            given,
            raw,
            dynamo=False,
            opset_version=opset,
            training=torch.onnx.TrainingMode.PRESERVE,  # it would else fold BatchNorm in fp32
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(varying) for name, varying in axes.items()},
        )
        model = onnx_files.load(raw)
    return Trace(model=tidy(model, marker_domain=DOMAIN), frozen=_frozen(said))


def _frozen(said: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    lines = [
        f"{Path(item.filename).name}:{item.lineno}: {str(item.message).splitlines()[0].partition('. ')[0]}"
        for item in said
        if item.category.__name__ == "TracerWarning" and "/torch/" not in item.filename
    ]
    return tuple(dict.fromkeys(lines))


@contextmanager
def _unprinted() -> Iterator[None]:
    """Let what the exporter's C++ prints vanish: on an error it writes the whole graph to standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
