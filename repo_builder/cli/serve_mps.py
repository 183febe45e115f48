"""What ``repo-builder serve`` says of CUDA MPS: who uses it, and where it would help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repo_builder.core.errors import RepositoryError

if TYPE_CHECKING:
    from repo_builder.serve import Server
    from repo_builder.serve.run.mps import Mps


def before(server: Server, repository: Path) -> None:
    """Say of a server that starts which MPS it uses where that is not its own, and where it has none but should."""
    if server.mps is None:
        hint = _hint(repository, server.models)
        if hint:
            click.echo(hint, err=True)
    elif not server.mps.started:
        click.echo(f"mps: the one that runs already is used ({server.mps.pipes})", err=True)


def shown(mps: Mps | None, group: int) -> dict[str, Any] | None:
    """Return an MPS and which processes of a server use it as plain JSON values, None where there is no MPS."""
    return {**mps.to_dict(), "clients": mps.clients(group)} if mps else None


def cell(mps: Mps | None, group: int) -> str:
    """Return how many processes of a server use its MPS, for a table."""
    if mps is None:
        return "-"
    clients = mps.clients(group)
    return "no answer" if clients is None else _processes(len(clients))


def words(clients: Sequence[int] | None) -> str:
    """Return what is to be said of the processes that use an MPS; None is a control daemon that does not answer."""
    if clients is None:
        return "warning: its control daemon does not answer; who shares the GPU is not known"
    if not clients:
        return "warning: no process of Triton uses it; that is right only where no model runs on the GPU"
    return f"{_processes(len(clients))} {'share' if len(clients) > 1 else 'uses'} the GPU"


def _processes(count: int) -> str:
    return f"{count} process" if count == 1 else f"{count} processes"


def _hint(repository: Path, models: Sequence[str]) -> str | None:
    """Return one line where a plan has several instances on a GPU and nobody runs MPS, though it is here."""
    from repo_builder.serve.run.embedded import mps_is_idle

    if not mps_is_idle():
        return None
    configs = [path for path in repository.glob("*/config.pbtxt") if not models or path.parent.name in models]
    count, name = max(((_instances_on_a_gpu(path), path.parent.name) for path in configs), default=(0, ""))
    if count < 2:
        return None
    return (
        f"hint: the {count} instances of '{name}' take turns on the GPU, each in a process of its own; "
        "with --mps they use it at the same time"
    )


def _instances_on_a_gpu(path: Path) -> int:
    """Return how many instances of a TensorRT plan are on the GPU that has most of them, 0 where that is not known.

    Args:
        path: The plan's config.pbtxt.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "tensorrt" not in text:  # most are not, and protobuf is slow to import
            return 0
        from repo_builder.repository import protobuf

        config = protobuf.parse(text, str(path))
    except (OSError, ValueError, RepositoryError):  # Triton will say what is wrong
        return 0
    if config.backend != "tensorrt":
        return 0
    on_all, on_some = 0, Counter[int]()
    for group in config.instance_group:
        if group.kind in (group.KIND_AUTO, group.KIND_GPU):
            on_all += 0 if group.gpus else max(group.count, 1)
            on_some.update(dict.fromkeys(group.gpus, max(group.count, 1)))
    return on_all + max(on_some.values(), default=0)
