"""Options of a server that a verb starts, in the same words whatever the verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

MPS = click.option(
    "--mps",
    is_flag=True,
    help="Let the instances of a plan use the GPU at the same time instead of in turns, through CUDA MPS of NVIDIA's "
    "driver. Only embedded needs it.",
)
BACKEND_DIRECTORY = click.option(
    "--backend-directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Use the native backends of this folder, such as /opt/tritonserver/backends of NVIDIA's image, before those "
    "of this package. For embedded.",
)


def load_timeout(*former: str) -> Callable[[Any], Any]:
    """Return the option of how long loading may take; ``former`` are names that it had and that go on working."""
    return click.option(
        "--load-timeout",
        *former,
        "load_timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=120.0,
        show_default=True,
        metavar="SECONDS",
        help="How long loading may take, until a model is ready.",
    )


_PORTS = {
    "--http-port": "Port of HTTP; 0 picks a free one.",
    "--grpc-port": "Port of gRPC; 0 picks a free one.",
    "--metrics-port": "Port of the metrics for Prometheus; 0 picks a free one.",
}


def ports(http: int, grpc: int, metrics: int) -> tuple[Callable[[Any], Any], ...]:
    """Return the options of the ports, with these defaults."""
    asked = zip(_PORTS.items(), (http, grpc, metrics), strict=True)
    return tuple(
        click.option(name, type=int, default=default, show_default=True, help=said) for (name, said), default in asked
    )


def with_ports(http: int, grpc: int, metrics: int) -> Callable[[Any], Any]:
    """Return a decorator that adds them."""

    def add(function: Any) -> Any:  # noqa: ANN401 - click's decorators
        for option in reversed(ports(http, grpc, metrics)):
            function = option(function)
        return function

    return add
