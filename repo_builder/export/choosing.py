"""Which exporter's graph is taken, and why: two tables that a person can read.

A trace takes a tenth of the time, and where it computes no sizes and froze no value its graph is torch.export's, node
for node (docs/exporters.md has the figures). So torch.export is asked where a row of ``ASKS`` says why, and its graph
is taken unless a row of ``KEEPS`` says why not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx

from repo_builder.core.errors import first_line
from repo_builder.core.graphs import TYPE
from repo_builder.export.tracing import Trace

Name = Literal["torch.export", "torchscript"]
Attempt = Trace | Exception
_SIZES = frozenset({"Shape", "Size", "ConstantOfShape", "Range", "NonZero"})
_FLOWS = frozenset({"If", "Loop", "Scan", "SequenceAt", "SequenceConstruct", "SplitToSequence"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
SAME = "it computes no sizes and froze no value, so torch.export has nothing to leave out"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is taken.

    Attributes:
        exporter: Who wrote the graph.
        why: A sentence's end, as in ``the trace computes sizes in 15 nodes``.
    """

    exporter: Name
    why: str

    def __str__(self) -> str:
        """Return it as a line of a build's output."""
        return f"{self.exporter}: {self.why}"


def _failed(trace: Attempt) -> str:
    return f"the older exporter fails: {first_line(trace)}" if isinstance(trace, Exception) else ""


def _froze(trace: Attempt) -> str:
    count = 0 if isinstance(trace, Exception) else len(trace.frozen)
    return f"a trace freezes {count} value{'s'[: count - 1]} that may depend on the data" if count else ""


def _flows(trace: Attempt) -> str:
    found = _count(trace, _FLOWS)
    return f"a trace runs {found} loop{'s'[: found - 1]} or branch{'es'[: 2 * (found - 1)]}" if found else ""


def _sizes(trace: Attempt) -> str:
    if _count(trace, _RECURRENT):
        return ""  # states of zeros, which torch.export writes in more nodes, and needs seconds for
    found = _count(trace, _SIZES)
    return f"a trace computes sizes in {found} node{'s'[: found - 1]}" if found else ""


ASKS: tuple[Callable[[Attempt], str], ...] = (_failed, _froze, _flows, _sizes)


def asked(trace: Attempt) -> str:
    """Return why torch.export is asked; empty where the trace will do."""
    return next((said for said in (row(trace) for row in ASKS) if said), "")


def stands(trace: Attempt) -> str:
    """Return why a trace will do."""
    recurrent = _count(trace, _RECURRENT)
    return "it froze no value, and torch.export writes recurrent layers in more nodes" if recurrent else SAME


def _loses(trace: Trace, captured: onnx.ModelProto) -> str:
    lost = sorted(layers(trace.model) - layers(captured))
    return f"torch.export loses {len(lost)} layers, as {lost[0]}" if lost else ""


def _larger(trace: Trace, captured: onnx.ModelProto) -> str:
    before, after = nodes(trace.model), nodes(captured)
    if after <= before or trace.frozen:
        return ""
    return f"torch.export needs {after} nodes where the trace has {before}"


KEEPS: tuple[Callable[[Trace, onnx.ModelProto], str], ...] = (_loses, _larger)


def kept(trace: Attempt, captured: onnx.ModelProto) -> str:
    """Return why the trace is taken though torch.export worked; empty where torch.export's graph is."""
    if isinstance(trace, Exception):
        return ""
    return next((said for said in (row(trace, captured) for row in KEEPS) if said), "")


def layers(model: onnx.ModelProto) -> set[str]:
    """Return names and types of layers that are modules, as in ``conv1 Conv2d``."""
    return {
        f"{node.name} {item.value}" for node in model.graph.node for item in node.metadata_props if item.key == TYPE
    }


def nodes(model: onnx.ModelProto) -> int:
    """Return how many nodes compute something."""
    return sum(node.op_type != "Constant" for node in model.graph.node)


def _count(trace: Attempt, kinds: frozenset[str]) -> int:
    return 0 if isinstance(trace, Exception) else sum(node.op_type in kinds for node in trace.model.graph.node)
