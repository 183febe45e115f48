"""What fine-tuning makes small: the distance of outputs from the fp32 model's, or from the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from repo_builder.core.recipe import FinetuneSpec

Named = Mapping[str, Tensor]
_LEAST = 1e-12  # of a probability before its logarithm, and of a variance


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is made small, and what the best epoch is chosen by.

    Attributes:
        scored: The output that is scored.
        classes: Whether it is one number a class.
        spec: The recipe's ``[finetune]``.
    """

    scored: str
    classes: bool
    spec: FinetuneSpec


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A loss.

    Attributes:
        task: What is scored.
        probabilities: Whether the scored output holds probabilities; else it holds logits.
    """

    task: Task
    probabilities: bool

    @classmethod
    def of(cls, task: Task, outputs: Named) -> Distance:
        """Return the loss for a model; whether it gives probabilities is read off outputs of it."""
        return cls(task=task, probabilities=task.classes and _are_probabilities(outputs[task.scored]))

    def __call__(self, outputs: Named, wanted: Named, labels: Tensor | None) -> Tensor:
        """Return the mean over a batch.

        Of class scores that is the cross-entropy with the labels, or the Kullback-Leibler divergence from the fp32
        model's probabilities (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, at temperature 1).
        Of other outputs it is the squared error as a share of what the fp32 model's vary by, the mean over outputs.

        Args:
            outputs: The network's, by name.
            wanted: The fp32 model's; not looked at for cross-entropy.
            labels: Class numbers; not looked at for distillation.
        """
        scored = self.task.scored
        if self.task.spec.loss == "cross-entropy" and labels is not None:
            return functional.nll_loss(self._logarithms(outputs[scored]), labels)
        if self.task.classes:
            mine, its = (self._logarithms(item[scored]) for item in (outputs, wanted))
            return functional.kl_div(mine, its, reduction="batchmean", log_target=True)
        shares = [
            functional.mse_loss(value, wanted[name]) / wanted[name].var(correction=0).clamp(min=_LEAST)
            for name, value in outputs.items()
            if value.is_floating_point()
        ]
        return torch.stack(shares).mean()

    def _logarithms(self, scores: Tensor) -> Tensor:
        return scores.clamp(min=_LEAST).log() if self.probabilities else functional.log_softmax(scores, 1)


def _are_probabilities(scores: Tensor) -> bool:
    sums = scores.sum(1)
    return bool((scores >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
