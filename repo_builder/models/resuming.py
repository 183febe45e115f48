"""The state of a training run between two epochs, kept beside its output until it ends."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repo_builder.core import files
from repo_builder.core.errors import ModelError
from repo_builder.models import checkpoints


@dataclass(frozen=True, kw_only=True)
class State:
    """What is known after an epoch.

    Attributes:
        epoch: Epochs done.
        best_epoch: The best of them, 0 before the first.
        best_accuracy: Its top-1 on validation, a fraction.
        best_loss: Its mean cross-entropy there.
        best: Its tensors.
        history: One record an epoch.
    """

    epoch: int
    best_epoch: int
    best_accuracy: float
    best_loss: float
    best: dict[str, torch.Tensor]
    history: tuple[dict[str, Any], ...]


def resume_file(output: Path) -> Path:
    """Return where the state of the training that writes ``output`` is kept."""
    return output.with_name(f"{output.name}.resume")


def remember(output: Path, key: str, state: State, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state atomically. It needs no random state: every epoch has a seed of its own.

    Raises:
        OutputError: The file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(
        {"key": key, "state": vars(state), "model": module.state_dict(), "optimizer": optimizer.state_dict()}, buffer
    )
    files.write_bytes(resume_file(output), buffer.getvalue())


def resumed(output: Path, key: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Read the state, and bring module and optimizer to it.

    Raises:
        ModelError: There is none, it is damaged, or it is that of another recipe or other data.
    """
    path = resume_file(output)
    if not path.is_file():
        raise ModelError(
            f"there is no interrupted training at {path}", where="--resume", hint="leave --resume out to start one"
        )
    saved = checkpoints.read(path, where="--resume")
    if not isinstance(saved, dict) or saved.get("key") != key:
        raise ModelError(
            f"{path} belongs to another recipe, seed or data",
            where="--resume",
            hint="leave --resume out to start anew, or name another --output",
        )
    module.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return State(**saved["state"])


def forget(output: Path) -> None:
    """Remove the state of a training that has ended."""
    resume_file(output).unlink(missing_ok=True)
