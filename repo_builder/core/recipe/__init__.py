"""Recipes: what to build, how to quantize, compile, serve and measure it, as frozen dataclasses.

A recipe is a TOML file whose tables are the classes of this package, one module for tables that belong together. What
a value may be stands at its field: its type, and ``Annotated`` with a bound; a rule about several values of a table is
its class's ``__post_init__``. docs/recipes.md and docs/recipe.schema.json are written from these declarations. Reading
files and ``--set`` are ``recipes/__init__.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from repo_builder.core import codec
from repo_builder.core.bounds import Bound
from repo_builder.core.recipe.bounds import Name
from repo_builder.core.recipe.precision import (
    CalibratorName,
    ExportSpec,
    InputQuantizer,
    LayerRule,
    Precision,
    QuantizeSpec,
    WeightQuantizer,
)
from repo_builder.core.recipe.serving import MeasureSpec, RepositorySpec
from repo_builder.core.recipe.sources import Augmentation, DataSpec, ModelSpec, TrainSpec
from repo_builder.core.recipe.targets import CompileSpec, OnnxRuntimeSpec, ProfileSpec, Target, TensorRTSpec

__all__ = [
    "Augmentation",
    "CalibratorName",
    "CompileSpec",
    "DataSpec",
    "ExportSpec",
    "InputQuantizer",
    "LayerRule",
    "MeasureSpec",
    "ModelSpec",
    "OnnxRuntimeSpec",
    "Precision",
    "ProfileSpec",
    "QuantizeSpec",
    "Recipe",
    "RepositorySpec",
    "Target",
    "TensorRTSpec",
    "TrainSpec",
    "WeightQuantizer",
    "parse",
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model, from its source to how it is measured.

    Attributes:
        name: The model's name in Triton: letters, digits, ``-``, ``_`` and ``.``.
        description: One line for ``repo-builder recipes``.
        seed: Seed of every random choice.
        model: Where the network comes from.
        data: Samples and how they are split.
        train: How a checkpoint is made.
        quantize: The back end and the layer rules.
        export: The ONNX that is written.
        compile: The target and its options.
        repository: What config.pbtxt says beyond the tensors.
        measure: Defaults of ``repo-builder perf``.
    """

    name: Name
    description: str = ""
    seed: Annotated[int, Bound(ge=0, lt=2**32)] = 0
    model: ModelSpec
    data: DataSpec
    train: TrainSpec = field(default_factory=TrainSpec)
    quantize: QuantizeSpec = field(default_factory=QuantizeSpec)
    export: ExportSpec = field(default_factory=ExportSpec)
    compile: CompileSpec = field(default_factory=CompileSpec)
    repository: RepositorySpec = field(default_factory=RepositorySpec)
    measure: MeasureSpec = field(default_factory=MeasureSpec)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain TOML/JSON values, from which ``parse`` makes an equal one."""
        values: dict[str, Any] = codec.plain(self)
        return values


def parse(value: Mapping[str, Any]) -> Recipe:
    """Turn a parsed TOML document into a recipe.

    Raises:
        RecipeError: A key is unknown or missing, or a value has the wrong type or is out of bounds.
    """
    return codec.build(Recipe, value)
