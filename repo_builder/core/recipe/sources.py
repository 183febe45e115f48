"""``[model]``, ``[data]`` and ``[train]``: what is built, and of what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from repo_builder.core.bounds import Bound
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe.bounds import Count, Share, Text
from repo_builder.core.tensors import TensorSpec

Augmentation = Literal["shift", "mirror"]
_SOME_INPUT = Bound(nonempty=True, says="there is no input", hint="add [[model.inputs]]")
_SOME_OUTPUT = Bound(nonempty=True, says="there is no output", hint="add [[model.outputs]]")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """``[model]``: where the network comes from and what it takes and gives.

    Attributes:
        source: A built-in architecture (``vgg``, ``jsc``), ``module:function`` returning a ``torch.nn.Module``, or
            an .onnx file.
        arguments: Keyword arguments of the architecture.
        checkpoint: Weights (.safetensors, .pt); relative to the recipe; ``package:NAME`` for shipped ones.
        inputs: Named inputs, batch left out.
        outputs: Named outputs, batch left out.
    """

    source: Text
    arguments: dict[str, Any] = field(default_factory=dict)
    checkpoint: Text | None = None
    inputs: Annotated[tuple[TensorSpec, ...], _SOME_INPUT]
    outputs: Annotated[tuple[TensorSpec, ...], _SOME_OUTPUT]

    def __post_init__(self) -> None:
        """Refuse two tensors of one name."""
        for key, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [item.name for item in tensors]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise RecipeError(f"'{twice}' is named twice", where=key)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """``[data]``: samples and how they are split.

    Attributes:
        source: ``digits``, ``cifar10``, ``jets``, ``jets-openml``, a .npz or .csv file, a folder with one
            sub-folder a class,
            or ``module:function``.
        arguments: Keyword arguments of the loader. A user's data takes ``split = "test"`` too: all is held out.
        validation: Fraction of the samples (those outside a given test set) that choose the best epoch.
        test: Fraction held out for every reported accuracy; ignored where the data set brings its own test set.
        calibration: Number of samples, stratified by class, that calibrate ranges; drawn from what could train, and at
            most half of it.
    """

    source: Text
    arguments: dict[str, Any] = field(default_factory=dict)
    validation: Share = 0.1
    test: Share = 0.2
    calibration: Annotated[int, Bound(ge=1, must="is too few: calibration needs at least one sample")] = 512

    def __post_init__(self) -> None:
        """Refuse fractions that leave nothing to train on."""
        if self.validation + self.test >= 1:
            raise RecipeError("validation and test leave nothing to train on")


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """``[train]``: how ``repo-builder train`` makes a checkpoint (AdamW, cosine schedule, cross-entropy).

    Attributes:
        epochs: How often all training samples are seen.
        batch_size: Samples a step.
        learning_rate: Peak of the cosine schedule.
        weight_decay: AdamW's.
        augment: What is done to training images at random: ``shift`` by up to four pixels, ``mirror`` left and right.
    """

    epochs: Count = 20
    batch_size: Count = 64
    learning_rate: Annotated[float, Bound(gt=0)] = 1e-3
    weight_decay: Annotated[float, Bound(ge=0)] = 1e-4
    augment: tuple[Augmentation, ...] = ()
