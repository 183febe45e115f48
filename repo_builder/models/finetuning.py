"""Fine-tune a fake-quantized network: AdamW, cosine schedule; the best epoch on validation is what is kept.

Epoch 0, the network as it was calibrated, is one of the candidates: where no epoch is better, nothing is changed. Every
epoch draws from a seed of its own, so a run that was killed and goes on ends with the very weights of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from repo_builder.core.errors import DataError, ModelError
from repo_builder.core.recipe import FinetuneSpec
from repo_builder.core.tensors import Array
from repo_builder.models.augmentation import augment
from repo_builder.models.distance import Distance, Named, Task
from repo_builder.models.parts import SamplesLike, epoch_seed, reproducible
from repo_builder.models.resuming import State, remember, resume_file, resumed
from repo_builder.models.training import TrainingInterrupted

_EVALUATION_BATCH = 256


class Tunable(Protocol):
    """What fine-tuning needs of a fake-quantized network, beside that it is an ``nn.Module``."""

    def __call__(self, inputs: Named, /) -> dict[str, Tensor]:
        """Return outputs by name; inputs by name, batch first."""

    def weights(self) -> list[nn.Parameter]:
        """Return its weights and biases."""

    def steps(self) -> list[nn.Parameter]:
        """Return what changes its ranges, as logarithms of factors."""

    def settle(self) -> None:
        """Bring what is trained back to where it may be; called after every step."""


@dataclass(frozen=True)
class _Part:
    """Samples on the device."""

    inputs: dict[str, Tensor]
    labels: Tensor | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batch(self, chosen: Tensor | slice) -> tuple[dict[str, Tensor], Tensor | None]:
        labels = None if self.labels is None else self.labels[chosen]
        return {name: item[chosen] for name, item in self.inputs.items()}, labels


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """How fine-tuning went.

    Attributes:
        best_epoch: The epoch that was kept; 0 for the network as it was calibrated.
        history: One record an epoch, from 0: ``loss`` (mean over training; None for epoch 0), ``validation_loss``,
            ``validation_top1`` (None without labels).
        resumed_after: The epoch that an interrupted run had reached; 0 where there was none.
        device: ``cpu`` or ``cuda``.
    """

    best_epoch: int
    history: tuple[dict[str, Any], ...]
    resumed_after: int
    device: str


def device_of(spec: FinetuneSpec) -> str:
    """Return the device to train on.

    Raises:
        ModelError: It is not there.
    """
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("torch sees no CUDA device here", where="finetune.device", hint='use device = "auto"')
    if spec.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return spec.device


def finetune(
    module: nn.Module,
    teacher: nn.Module,
    task: Task,
    training: SamplesLike,
    validation: SamplesLike,
    *,
    seed: int,
    output: Path,
    key: str,
    progress: Callable[[Iterable[int], str], Iterable[int]],
    say: Callable[[str], None],
) -> Tuned:
    """Fine-tune a network in place; it ends on the CPU, in its best epoch.

    Args:
        module: The fake-quantized network, a ``Tunable``.
        teacher: The same in fp32, as it was before.
        task: What is made small.
        training: Samples to train with.
        validation: Samples to choose the best epoch by.
        seed: Of everything random.
        output: The file beside which the state is kept between epochs. It stays after the last, for the caller to
            remove (``resuming.forget``) once what was trained is safe.
        key: Hash of all that decides the outcome: a state of another key is not gone on from.
        progress: Wraps an iterable of batches with a bar of the given title.
        say: Takes one line an epoch.

    Raises:
        DataError: The loss needs labels, and there are none.
        ModelError: The loss is not finite, or the device is not there.
        TrainingInterrupted: Ctrl-C; the same call goes on from the last whole epoch.
    """
    device = device_of(task.spec)
    parts = [_part(item, task, device) for item in (training, validation)]
    run = _Run(module, teacher.to(device).eval(), task, parts[0], parts[1], seed)
    with reproducible(seed, device):
        module.to(device).eval()
        state = run.resume(output, key) or run.begin()
        before = state.epoch
        try:
            say(_told(state.history[-1], task.spec.epochs))
            for epoch in range(before + 1, task.spec.epochs + 1):
                state = run.epoch(epoch, state, progress)
                remember(output, key, state, module, run.optimizer)
                say(_told(state.history[-1], task.spec.epochs))
        except KeyboardInterrupt:
            where = f"; the same build goes on from {resume_file(output)}" if state.epoch else ""
            raise TrainingInterrupted(
                f"stopped after epoch {state.epoch} of {task.spec.epochs} of fine-tuning{where}"
            ) from None
        module.load_state_dict(state.best)
        module.to("cpu")
        teacher.to("cpu")
    return Tuned(best_epoch=state.best_epoch, history=state.history, resumed_after=before, device=device)


class _Run:
    """One fine-tuning, between its start and its end."""

    def __init__(
        self, module: nn.Module, teacher: nn.Module, task: Task, training: _Part, validation: _Part, seed: int
    ) -> None:
        self.module, self.teacher, self.task, self.seed = module, teacher, task, seed
        self.training, self.validation, self.spec = training, validation, task.spec
        tunable: Any = module
        self.tunable: Tunable = tunable
        for item in tunable.steps():
            item.requires_grad_(self.spec.ranges == "learned")
        groups: list[dict[str, Any]] = [
            {"params": tunable.weights(), "weight_decay": self.spec.weight_decay, "peak": self.spec.learning_rate}
        ]
        if self.spec.ranges == "learned":
            steps = {"params": tunable.steps(), "weight_decay": 0.0, "peak": self.spec.range_learning_rate}
            groups.append(steps)
        module.to(next(iter(training.inputs.values())).device)
        self.optimizer = torch.optim.AdamW(groups, lr=self.spec.learning_rate)
        with torch.no_grad():
            taught = self.teacher(validation.batch(slice(0, _EVALUATION_BATCH))[0])
        self._distance = Distance.of(task, taught)

    def resume(self, output: Path, key: str) -> State | None:
        """Return the state of a run that was interrupted; None where there is none of this key."""
        try:
            return resumed(output, key, self.module, self.optimizer)
        except ModelError:
            return None

    def begin(self) -> State:
        """Return the state before the first epoch."""
        top1, loss = self.evaluate()
        return State(
            epoch=0,
            best_epoch=0,
            best_accuracy=top1 or 0.0,
            best_loss=loss,
            best=_copied(self.module),
            history=({"epoch": 0, "loss": None, "validation_top1": top1, "validation_loss": loss},),
        )

    def epoch(self, epoch: int, state: State, progress: Callable[[Iterable[int], str], Iterable[int]]) -> State:
        """Train for one epoch, and return the state after it."""
        seed = epoch_seed(self.seed, epoch)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.training), generator=generator)
        size = min(self.spec.batch_size, len(self.training))
        batches = len(self.training) // size
        device = next(iter(self.training.inputs.values())).device
        total = torch.zeros((), device=device)
        for batch in progress(range(batches), f"fine-tuning, epoch {epoch}/{self.spec.epochs}"):
            done = ((epoch - 1) * batches + batch) / (self.spec.epochs * batches)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * done))
            inputs, labels = self.training.batch(order[batch * size : (batch + 1) * size].to(device))
            loss = self.loss(
                {name: augment(item, self.spec.augment, generator) for name, item in inputs.items()}, labels
            )
            if not torch.isfinite(loss):  # told before it reaches a library's kernels, which end the process on NaN
                hint = "lower finetune.learning_rate"
                raise ModelError(f"the loss is not finite in epoch {epoch}", where="finetune", hint=hint)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.tunable.settle()
            total += loss.detach()
        return self._judged(epoch, state, float(total) / batches)

    def _judged(self, epoch: int, state: State, mean: float) -> State:
        """Return the state after an epoch; equal accuracies are told apart by the loss."""
        top1, loss = self.evaluate()
        better = ((top1 or 0.0), -loss) > (state.best_accuracy, -state.best_loss)
        record = {"epoch": epoch, "loss": mean, "validation_top1": top1, "validation_loss": loss}
        return State(
            epoch=epoch,
            best_epoch=epoch if better else state.best_epoch,
            best_accuracy=(top1 or 0.0) if better else state.best_accuracy,
            best_loss=loss if better else state.best_loss,
            best=_copied(self.module) if better else state.best,
            history=(*state.history, record),
        )

    def evaluate(self) -> tuple[float | None, float]:
        """Return top-1 on validation as a fraction, None without labels, and the mean loss there."""
        part, right, total = self.validation, 0, 0.0
        with torch.no_grad():
            for start in range(0, len(part), _EVALUATION_BATCH):
                inputs, labels = part.batch(slice(start, start + _EVALUATION_BATCH))
                outputs = self.module(inputs)
                count = len(next(iter(inputs.values())))
                total += count * float(self._distance(outputs, self._wanted(inputs), labels))
                if labels is not None:
                    right += int((outputs[self.task.scored].argmax(1) == labels).sum())
        return (None if part.labels is None else right / len(part)), total / len(part)

    def loss(self, inputs: Named, labels: Tensor | None) -> Tensor:
        """Return the mean loss of a batch."""
        with torch.no_grad():
            wanted = self._wanted(inputs)
        return self._distance(self.module(inputs), wanted, labels)

    def _wanted(self, inputs: Named) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.teacher(inputs) if self.spec.loss == "distillation" else {}
        return found


def _part(samples: SamplesLike, task: Task, device: str) -> _Part:
    labels = samples.labels if task.classes else None
    if labels is None and task.spec.loss == "cross-entropy":
        raise DataError(
            "cross-entropy needs class labels, and this data has none",
            where="finetune.loss",
            hint='use loss = "distillation", which needs no labels',
        )
    inputs = {name: torch.from_numpy(np.ascontiguousarray(item)).to(device) for name, item in samples.inputs.items()}
    return _Part(inputs, None if labels is None else _whole(labels).to(device))


def _whole(labels: Array) -> Tensor:
    return torch.from_numpy(np.asarray(labels, np.int64))


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: item.detach().cpu().clone() for name, item in module.state_dict().items()}


def _told(record: Mapping[str, Any], epochs: int) -> str:
    """Return an epoch's line."""
    parts = [f"epoch {record['epoch']}/{epochs}"]
    if record["loss"] is not None:
        parts.append(f"loss {record['loss']:.4g}")
    parts.append(f"validation loss {record['validation_loss']:.4g}")
    if record["validation_top1"] is not None:
        parts.append(f"validation top-1 {record['validation_top1']:.4f}")
    return "  ".join(parts)
