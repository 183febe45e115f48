"""The layers of a model as rules see them, before any rule is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from repo_builder import models
from repo_builder.core import calling, loading, onnx_files
from repo_builder.core.recipe import Recipe
from repo_builder.flows.build import piping, varying
from repo_builder.quantize import prepare
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.rules import WEIGHTED, WEIGHTLESS


@dataclass(frozen=True, kw_only=True)
class ModelLayer:
    """A layer of a model.

    Attributes:
        name: What ``name`` of a rule selects.
        type: What ``type`` of a rule selects.
        aliases: Other names of the type, which select it as well.
        selected_by: ``any rule`` that fits; ``type or full name``; ``nothing`` where it takes the precision of what
            feeds it.
    """

    name: str
    type: str
    aliases: tuple[str, ...]
    selected_by: str


def layers(source: str, *, data_dir: Path | None = None) -> tuple[ModelLayer, ...]:
    """Return the layers of a model, in the model's order; one that runs twice comes once.

    Args:
        source: An .onnx file, a recipe's file or a built-in's name. A torch module is exported, with freshly
            initialised weights, for that.
        data_dir: Folder of the data set, for a recipe with a torch module.

    Raises:
        RecipeError: No such recipe, or it cannot be understood.
        ModelError: The model cannot be read or made.
        QuantizeError: It is quantized already, or too old.
    """
    ready = prepare.prepare(_graph(source, data_dir))
    return tuple(
        ModelLayer(name=_of_module(name, kind), type=kind, aliases=tuple(aliases), selected_by=_selected_by(kind))
        for name, kind, *aliases in find_layers(ready)
    )


def _of_module(name: str, kind: str) -> str:
    """Return the module's name behind torch's name of a node, as ``body.2`` of ``/body/body.2/Relu``."""
    scopes = name.split("/")
    torch_gave_it = len(scopes) > 2 and not scopes[0] and scopes[-1].partition("_")[0] == kind
    return scopes[-2] if torch_gave_it and kind not in WEIGHTED | WEIGHTLESS else name


def _selected_by(kind: str) -> str:
    if kind in WEIGHTED:
        return "any rule"
    return "type or full name" if kind in WEIGHTLESS else "nothing"


def kinds(recipe: Recipe) -> Counter[str]:
    """Return how many layers of each type, as rules may name them, a recipe's model has; no data is needed.

    Raises:
        RecipeError: The model's function is not there, or takes other arguments.
        ModelError: The model cannot be read or made.
    """
    if recipe.model.source.endswith(".onnx"):
        found = [item[1] for item in find_layers(prepare.prepare(onnx_files.load(Path(recipe.model.source))))]
    else:
        module = models.create(recipe.model, seed=recipe.seed)
        found = [type(item).__name__ for item in module.modules() if not list(item.children())]
    return Counter(kind for kind in found if kind in WEIGHTED | WEIGHTLESS)


def _graph(source: str, data_dir: Path | None) -> onnx.ModelProto:
    if source.endswith(".onnx"):
        return onnx_files.load(Path(source))
    recipe = Recipe.load(source)
    if recipe.model.source.endswith(".onnx"):
        return onnx_files.load(Path(recipe.model.source))
    spec = recipe.model
    with loading.needs("build", what="exporting a torch module"):
        from repo_builder.export import torch_onnx
    with piping.fed(recipe, data_dir) as dataset:
        samples = dataset.split("calibration").inputs
    module = models.create(spec, seed=recipe.seed)
    inputs = {item.name: item for item in spec.inputs}
    order, _ = calling.argument_order(module, tuple(inputs))
    return torch_onnx.export(
        module,
        inputs=tuple(inputs[name] for name in order),
        outputs=spec.outputs,
        opset=recipe.export.opset,
        path=Path(f"{recipe.name}.onnx"),
        samples=samples,
        exporter=recipe.export.exporter,
        sizes=varying.sizes(recipe),
    ).model
