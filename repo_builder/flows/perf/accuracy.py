"""Accuracy through the server: the held-out samples, their scores, and the ladder of all forms of the model."""

from __future__ import annotations

from repo_builder import datasets
from repo_builder.core import loading, progress
from repo_builder.core.errors import MeasureError
from repo_builder.core.recipe import DataSpec, MeasureSpec
from repo_builder.core.tensors import Array
from repo_builder.datasets import Dataset, Samples
from repo_builder.flows.perf.built import Build
from repo_builder.flows.perf.options import RANDOM, Collected, PerfOptions
from repo_builder.measure.judge import accuracy, ladder
from repo_builder.measure.load.session import Session
from repo_builder.results import Ladder


def held_out(
    options: PerfOptions, build: Build, session: Session, collected: Collected
) -> tuple[Dataset, Samples] | None:
    """Return the data set and its held-out part; None where inputs are made up.

    Raises:
        DataError: The data cannot be read, or is of other shapes than the model's inputs.
    """
    recipe, given = build.recipe, options.dataset
    if given == RANDOM or (given is None and recipe is None):
        why = "inputs are made up" if given else "no recipe is known for this model (--recipe, --dataset)"
        collected.update(accuracy_skipped=why, data="random inputs")
        return None
    if given is not None:  # all of what the user names is held out
        spec = DataSpec(source=given, arguments={"split": "test"})
    elif recipe is not None:
        spec = recipe.data
    inputs, seed = (recipe.model.inputs, recipe.seed) if recipe else (session.model.inputs, options.seed)
    dataset = datasets.load(spec, inputs=inputs, seed=seed, data_dir=options.data_dir)
    collected.update(data=dataset.name, data_fingerprint=dataset.fingerprint)
    return dataset, dataset.split("test")


def score(
    options: PerfOptions, build: Build, session: Session, collected: Collected, dataset: Dataset, samples: Samples
) -> None:
    """Send every held-out sample through the server and score what comes back.

    Raises:
        MeasureError: The server fails, or its outputs cannot be scored.
    """
    spec = build.recipe.measure if build.recipe else MeasureSpec()
    with progress.step("accuracy") as step:
        outputs = session.infer(samples.inputs)
        name = build.recipe.model.outputs[0].name if build.recipe else next(iter(outputs))
        if name not in outputs:
            raise MeasureError(f"the model has no output '{name}'; it has {', '.join(outputs)}", where="recipe")
        values, labels = outputs[name], samples.labels
        if spec.metric:
            collected.update(metrics=_own_metrics(spec.metric, outputs, labels))
        if spec.task != "classification":
            labels = None
            collected.update(accuracy_skipped="the recipe's task is not classification")
        elif labels is None:
            collected.update(accuracy_skipped="the data has no labels")
        else:
            scored = accuracy.score(values, labels, dataset.classes)
            collected.update(accuracy=scored)
            step.note(f"top-1 {scored.top1:.4f} on {scored.samples} samples")
        if options.dataset is None:
            collected.update(ladder=_ladder(build, values, labels, dataset, spec, collected))


def _ladder(
    build: Build,
    served: Array,
    labels: Array | None,
    dataset: Dataset,
    spec: MeasureSpec,
    collected: Collected,
) -> Ladder | None:
    """Compare with the outputs that the build left, where they are of these very samples."""
    forms = build.outputs()
    if not forms:
        return None
    if not build.is_of(dataset.fingerprint) or any(len(values) != len(served) for values in forms.values()):
        collected.note("the build's outputs are of other samples: there is no accuracy ladder")
        return None
    return ladder.climb(
        {**forms, "served": served},
        labels,
        classes=dataset.classes,
        accuracy_tolerance=spec.accuracy_tolerance,
        output_tolerance=None if spec.task == "classification" else spec.output_tolerance,
    )


def _own_metrics(target: str, outputs: dict[str, Array], labels: Array | None) -> dict[str, float]:
    """Call the recipe's ``module:function(outputs, labels)``; outputs are ``(n, ...)`` by name."""
    function = loading.load_user(target, where="measure.metric")
    try:
        return {str(name): float(value) for name, value in function(outputs, labels).items()}
    except Exception as error:
        raise MeasureError(f"'{target}' failed: {type(error).__name__}: {error}", where="measure.metric") from error
