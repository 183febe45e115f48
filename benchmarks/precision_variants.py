"""The networks of the precision table, exported and calibrated: one ONNX artifact a row. Needs torch, and no GPU.

    python benchmarks/precision_variants.py FOLDER --checkpoint vgg7_cifar10.safetensors --data-dir DATA

Writes FOLDER/<model>/<variant>/{model.fp32.onnx,ranges.npz,manifest.json}; ``precision_table.py`` compiles and
measures them on a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

from precision_rows import BATCHES, MODELS

from repo_builder import datasets, models, recipes
from repo_builder.core import files, progress
from repo_builder.core.recipe import InputQuantizer, LayerRule, Recipe, RepositorySpec
from repo_builder.datasets import Dataset
from repo_builder.flows.build import BuildOptions, exporting

ENDS = {
    "vgg7": ("feature_layers.0", "last_layer"),
    "jsc-toy": ("layers.2", "layers.8"),
    "jsc-s": ("layers.0", "layers.12"),
}
_CALIBRATORS: dict[str, InputQuantizer] = {
    "max": InputQuantizer(calibrator="max"),
    "percentile-99": InputQuantizer(calibrator="percentile", percentile=99.0),
    "percentile-99.9": InputQuantizer(calibrator="percentile", percentile=99.9),
    "percentile-99.99": InputQuantizer(calibrator="percentile", percentile=99.99),
    "mse": InputQuantizer(calibrator="mse"),
    "entropy": InputQuantizer(calibrator="entropy"),
}


def variants(model: str) -> Iterator[tuple[str, tuple[LayerRule, ...]]]:
    """Yield the rows of a model: name and layer rules."""

    def int8(kind: str, calibrator: str) -> LayerRule:
        return LayerRule(type=kind, precision="int8", input=_CALIBRATORS[calibrator])

    kinds = ("Conv2d", "Linear") if model == "vgg7" else ("Linear",)
    yield "fp32", ()
    yield "fp16", (LayerRule(name="*", precision="fp16"),)
    for calibrator in _CALIBRATORS:
        yield f"int8-{calibrator}", tuple(int8(kind, calibrator) for kind in kinds)
    if len(kinds) > 1:
        for kind in kinds:
            yield f"int8-{kind}-only", (int8(kind, "percentile-99.99"),)
    halves = tuple(LayerRule(name=name, precision="fp16") for name in ENDS[model])
    yield "mixed-ends-fp16", (*(int8(kind, "percentile-99.99") for kind in kinds), *halves)


def recipe_of(model: str, rules: tuple[LayerRule, ...]) -> Recipe:
    """Return the built-in recipe with other rules and the table's batch sizes."""
    base = recipes.load(MODELS[model])
    return dataclasses.replace(
        base,
        name=model,
        quantize=dataclasses.replace(base.quantize, layers=rules),
        repository=RepositorySpec(max_batch_size=BATCHES[-1], preferred_batch_sizes=(64,), warmup_batch_sizes=BATCHES),
    )


def export(model: str, name: str, recipe: Recipe, weights: Path, dataset: Dataset, folder: Path) -> None:
    """Export and calibrate one row."""
    target = folder / model / name
    with progress.step(f"{model} {name}") as step, files.replacing_folder(target) as fresh:
        work = fresh / "work"
        options = BuildOptions(recipe=recipe, work=work, repository=work, checkpoint=weights)
        made, _ = exporting.run(options, dataset)
        for item in made.path.iterdir():
            item.rename(fresh / item.name)
        shutil.rmtree(work)
        step.wrote(fresh)


def main() -> None:
    """Export every row of every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights of VGG7 on CIFAR-10")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument(
        "--only", default="", help="names of models and rows to make, as in vgg7/int8-max; all where empty"
    )
    options = parser.parse_args()
    for model in MODELS:
        rows = [(name, rules) for name, rules in variants(model) if options.only in f"{model}/{name}"]
        if not rows:
            continue
        base = recipe_of(model, ())
        vgg = model == "vgg7"
        dataset = datasets.load(
            base.data, inputs=base.model.inputs, seed=base.seed, data_dir=options.data_dir if vgg else None
        )
        weights = models.checkpoint_path(base.model, options.checkpoint if vgg else None)
        for name, rules in rows:
            export(model, name, recipe_of(model, rules), weights, dataset, options.folder)


if __name__ == "__main__":
    main()
