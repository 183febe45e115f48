"""Every layer's output passes through a marker while a module is exported: a node that says whose output it is.

Exporters name nodes by their own rules, which lose parts of qualified names. One way to mark serves both, so that rules
select the same layers whichever is taken; ``naming.tidy`` names the layers and takes the markers out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DOMAIN = "repo_builder"
MARK = f"{DOMAIN}::Layer"  # a node with the attributes "name" and "type"
Marker = Callable[[Tensor, str, str], Tensor]
_LAYERS = ("Conv", "MaxPool", "AvgPool", "AdaptiveAvgPool")


@contextmanager
def marked(module: nn.Module, mark: Marker) -> Iterator[None]:
    """Let every module that gives one tensor mark it with its name.

    Args:
        module: The network.
        mark: Passes a tensor on, and leaves a node of ``MARK``; takes the layer's qualified name and its type, too.
    """

    def marker(name: str) -> Callable[..., Any]:
        def hook(item: nn.Module, __: Any, output: Any) -> Any:  # noqa: ANN401 - torch's hook
            return mark(output, name, layer_type(item)) if isinstance(output, Tensor) else output

        return hook

    handles = [item.register_forward_hook(marker(name)) for name, item in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_type(module: nn.Module) -> str:
    """Return the type that rules know a module by: ``Conv2d`` also for a subclass of it, else its class's name."""
    kinds = [item.__name__ for item in type(module).__mro__ if item.__module__.startswith("torch.nn.modules.")]
    return next((name for name in kinds if name == "Linear" or name.startswith(_LAYERS)), type(module).__name__)


class _Mark(torch.autograd.Function):
    """Identity that the older exporter writes as a marker."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, kind: str) -> Tensor:  # noqa: ANN401 - torch's context
        return x.view_as(x)

    @staticmethod
    def symbolic(g: Any, x: Any, name: str, kind: str) -> Any:  # noqa: ANN401 - torch's graph
        return g.op(MARK, x, name_s=name, type_s=kind).setType(x.type())


def traced(x: Tensor, name: str, kind: str) -> Tensor:
    """Mark a tensor for the older exporter."""
    result: Tensor = _Mark.apply(x, name, kind)  # type: ignore[no-untyped-call]
    return result


def captured(x: Tensor, name: str, kind: str) -> Tensor:
    """Mark a tensor for torch.export."""
    attributes: dict[str, Any] = {"name": name, "type": kind}
    return torch.onnx.ops.symbolic(MARK, (x,), attributes, dtype=x.dtype, shape=x.shape, version=1)
