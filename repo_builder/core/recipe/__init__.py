"""Recipes: what to build, how to quantize, compile, serve and measure it, as frozen dataclasses.

A recipe is a TOML file whose tables are the classes of this package, one module for tables that belong together. What
a value may be stands at its field: its type, and ``Annotated`` with a bound; a rule about several values of a table is
its class's ``__post_init__``. docs/recipes.md and docs/recipe.schema.json are written from these declarations. Files
and ``--set`` are read by ``reading.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from repo_builder.core import codec
from repo_builder.core.bounds import Bound
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import reading
from repo_builder.core.recipe.bounds import Name
from repo_builder.core.recipe.finetune import FinetuneSpec
from repo_builder.core.recipe.pipeline import PipelineSpec
from repo_builder.core.recipe.precision import (
    CalibratorName,
    ExportSpec,
    InputQuantizer,
    LayerRule,
    Precision,
    QuantizeSpec,
    WeightQuantizer,
)
from repo_builder.core.recipe.repair import RepairSpec
from repo_builder.core.recipe.search import SearchSpec
from repo_builder.core.recipe.serving import MeasureSpec, RepositorySpec
from repo_builder.core.recipe.sources import Augmentation, DataSpec, ModelSpec, TrainSpec
from repo_builder.core.recipe.targets import CompileSpec, OnnxRuntimeSpec, ProfileSpec, Target, TensorRTSpec

__all__ = [
    "Augmentation",
    "CalibratorName",
    "CompileSpec",
    "DataSpec",
    "ExportSpec",
    "FinetuneSpec",
    "InputQuantizer",
    "LayerRule",
    "MeasureSpec",
    "ModelSpec",
    "OnnxRuntimeSpec",
    "PipelineSpec",
    "Precision",
    "ProfileSpec",
    "QuantizeSpec",
    "Recipe",
    "RepairSpec",
    "RepositorySpec",
    "SearchSpec",
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
        finetune: Fake-quantized training after calibration; None for none.
        export: The ONNX that is written.
        pipeline: Steps before and after the network.
        compile: The target and its options.
        repository: What config.pbtxt says beyond the tensors.
        measure: Defaults of ``repo-builder perf``.
        search: How precisions are searched; left out, they are those of the rules.
    """

    name: Name
    description: str = ""
    seed: Annotated[int, Bound(ge=0, lt=2**32)] = 0
    model: ModelSpec
    data: DataSpec
    train: TrainSpec = field(default_factory=TrainSpec)
    quantize: QuantizeSpec = field(default_factory=QuantizeSpec)
    finetune: FinetuneSpec | None = None
    export: ExportSpec = field(default_factory=ExportSpec)
    pipeline: PipelineSpec = field(default_factory=PipelineSpec)
    compile: CompileSpec = field(default_factory=CompileSpec)
    repository: RepositorySpec = field(default_factory=RepositorySpec)
    measure: MeasureSpec = field(default_factory=MeasureSpec)
    search: SearchSpec | None = None

    def __post_init__(self) -> None:
        """Refuse repairs of a network whose weights are then trained: they are made for the weights that came."""
        if self.finetune is not None and self.quantize.repair.asked:
            hint = "leave out [finetune] or [quantize.repair]"
            raise RecipeError("repairs a network that [finetune] trains to be int8", where="quantize.repair", hint=hint)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain TOML/JSON values, from which ``parse`` makes an equal one."""
        values: dict[str, Any] = codec.plain(self)
        return values

    @classmethod
    def load(cls, source: str | Path, settings: Iterable[str] = (), **tables: Any) -> Recipe:  # noqa: ANN401
        """Read a recipe by a built-in's name or a file's path.

        Relative paths in the file (model, checkpoint, data) are taken from the file's folder.

        Args:
            source: ``vgg`` or ``path/to/recipe.toml``.
            settings: ``key.path=value`` items, as ``--set`` takes them; a value is TOML, or else a plain string.
            tables: Keys and tables of a recipe, laid over those of the file key by key, as in ``seed=1`` or
                ``compile={"target": "onnxruntime"}``.

        Raises:
            RecipeError: No such recipe, or it cannot be understood.
        """
        document = reading.document(source, settings, tables)
        try:
            return parse(document)
        except RecipeError as error:
            path = reading.find(source)
            where = f"{path.name}: {error.where}" if error.where else str(path)
            raise RecipeError(error.message, where=where, hint=error.hint) from None

    def changed(self, settings: Iterable[str] = (), **tables: Any) -> Recipe:  # noqa: ANN401
        """Return the recipe with tables and settings applied, as ``load`` takes them.

        Raises:
            RecipeError: A setting reaches nothing, or its value makes no sense.
        """
        document = self.to_dict()
        reading.apply(document, settings, tables)
        return parse(document)


def parse(value: Mapping[str, Any]) -> Recipe:
    """Turn a parsed TOML document into a recipe.

    Raises:
        RecipeError: A key is unknown or missing, or a value has the wrong type or is out of bounds.
    """
    return codec.build(Recipe, value)
