"""``[finetune]``: fake-quantized training between calibration and placement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from repo_builder.core.bounds import Bound
from repo_builder.core.recipe.bounds import Count
from repo_builder.core.recipe.sources import Augmentation

FinetuneLoss = Literal["distillation", "cross-entropy"]
LearnedRanges = Literal["learned", "frozen"]


@dataclass(frozen=True, kw_only=True)
class FinetuneSpec:
    """``[finetune]``: fake-quantized fine-tuning of a torch module (AdamW, cosine schedule); without the table, none.

    Attributes:
        epochs: How often all training samples are seen.
        batch_size: Samples a step.
        learning_rate: Peak of the cosine schedule, for weights.
        range_learning_rate: The same for ranges, as a share of each: 0.01 moves one by about a hundredth a step.
        weight_decay: AdamW's, for weights.
        augment: What is done to training images at random, as in ``[train]``.
        loss: What is made small: the distance of the outputs from the fp32 model's (``distillation``, which needs no
            labels), or ``cross-entropy`` with the labels.
        ranges: Whether the ranges of tensors and weights are trained, too, or stay as calibrated.
        target: The target whose placement is trained for; ``auto`` is the one that the build compiles for.
        device: Where it runs; ``auto`` is ``cuda`` where torch sees a GPU.
    """

    epochs: Count = 3
    batch_size: Count = 64
    learning_rate: Annotated[float, Bound(gt=0)] = 1e-4
    range_learning_rate: Annotated[float, Bound(gt=0)] = 1e-3
    weight_decay: Annotated[float, Bound(ge=0)] = 0.0
    augment: tuple[Augmentation, ...] = ()
    loss: FinetuneLoss = "distillation"
    ranges: LearnedRanges = "learned"
    target: Literal["auto", "onnxruntime", "tensorrt"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
