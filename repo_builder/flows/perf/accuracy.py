"""Accuracy through the server: the held-out samples, their scores, and the ladder of all forms of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from repo_builder import datasets
from repo_builder.core import loading, progress
from repo_builder.core.errors import MeasureError
from repo_builder.core.recipe import DataSpec, MeasureSpec
from repo_builder.core.samples import NONE, Batches
from repo_builder.core.tensors import Array, TensorSpec
from repo_builder.datasets import Dataset, Samples
from repo_builder.flows.perf.built import Build, Client
from repo_builder.flows.perf.options import RANDOM, Collected, PerfOptions
from repo_builder.measure.judge import accuracy, ladder, ranked
from repo_builder.measure.judge.limits import Limits
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
    if recipe is not None and recipe.measure.metric and options.with_accuracy:  # before any work
        loading.require_user(recipe.measure.metric, where="measure.metric")
    if given == RANDOM or (given is None and recipe is None):
        why = "inputs are made up" if given else "no recipe is known for this model (--recipe, --data)"
        collected.update(accuracy_skipped=why, data="random inputs")
        return None
    if given is not None:  # all of what the user names is held out
        spec = DataSpec(source=given, arguments={"split": "test"})
    elif recipe is not None:
        spec = recipe.data
    inputs, seed = (build.client(recipe).inputs, recipe.seed) if recipe else (session.model.inputs, options.seed)
    dataset = datasets.load(spec, inputs=inputs, seed=seed, data_dir=options.data_dir)
    collected.update(data=dataset.name, data_fingerprint=dataset.fingerprint)
    samples = dataset.split("test")
    batches = _batches(build, session)
    if batches is not None:
        if batches.fixed and batches.size > 1:
            collected.note(f"each request holds {batches.size} samples, and counts as one inference, as for the server")
        return dataset, replace(samples, inputs=_shaped(batches.requests(samples.inputs), session.model.inputs))
    return dataset, replace(samples, inputs=_shaped(samples.inputs, session.model.inputs))


def _shaped(values: Mapping[str, Array], specs: Iterable[TensorSpec]) -> dict[str, Array]:
    """Return samples in the shapes of specs where they are one number each, which config.pbtxt has to call ``[1]``."""
    shapes = {item.name: item.shape for item in specs}
    single = ((), (1,))
    return {
        name: array.reshape(len(array), *shapes[name])
        if array.shape[1:] in single and shapes.get(name) in single
        else array
        for name, array in values.items()
    }


def _batches(build: Build, session: Session) -> Batches | None:
    """Return how samples become the whole tensors of a model that the server does not batch; None where it does.

    Raises:
        ModelError: The recipe's tensors are not the served ones.
    """
    model = session.model
    if build.recipe is None or model.batch_axis:
        return None
    known = build.client(build.recipe) if build.recipe.pipeline.some else build.engine or build.exported
    spec = known or build.recipe.model
    scalars = {item.name for item in (*spec.inputs, *spec.outputs) if item.shape == () and item.batch_axis == NONE}
    shapes = {item.name: () if item.name in scalars else item.shape for item in (*model.inputs, *model.outputs)}
    return Batches.of(spec.inputs, [item for item in spec.outputs if item.name in shapes], shapes, most=1)


def score(
    options: PerfOptions, build: Build, session: Session, collected: Collected, dataset: Dataset, samples: Samples
) -> None:
    """Send every held-out sample through the server, score what comes back, and hold all of it against the build.

    Raises:
        MeasureError: The server fails, or its outputs cannot be scored.
    """
    spec = build.recipe.measure if build.recipe else MeasureSpec()
    with progress.step("accuracy") as step:
        outputs, batches = session.infer(samples.inputs), _batches(build, session)
        if batches is not None:
            outputs = batches.answers(outputs, len(dataset.parts["test"]))
        client = _client(build, session, dataset.classes)
        outputs, labels, name = _shaped(outputs, client.outputs), samples.labels, client.scored
        if name not in outputs:
            raise MeasureError(f"the model has no output '{name}'; it has {', '.join(outputs)}", where="recipe")
        if spec.metric:
            collected.update(metrics=_own_metrics(spec.metric, outputs, labels))
        if spec.task != "classification":
            labels = None
            collected.update(accuracy_skipped="the recipe's task is not classification")
        elif labels is None:
            collected.update(accuracy_skipped="the data has no labels")
        else:
            dataset.require_class_numbers()
            values = ranked.spread(outputs, client.ranked, client.width)[name]
            scored = accuracy.score(values, labels, dataset.classes, with_loss=not client.ranked)
            collected.update(accuracy=scored)
            step.note(f"top-1 {scored.top1:.4f} on {scored.samples} samples")
        if options.dataset is None:
            collected.update(ladder=_ladder(build, outputs, client, labels, dataset, spec, collected))


def _client(build: Build, session: Session, classes: tuple[str, ...]) -> Client:
    if build.recipe is not None:
        return build.client(build.recipe, classes)
    model = session.model
    return Client(
        inputs=model.inputs, outputs=model.outputs, scored=ladder.scored_output(model.outputs, None, len(classes))
    )


def _ladder(
    build: Build,
    served: dict[str, Array],
    client: Client,
    labels: Array | None,
    dataset: Dataset,
    spec: MeasureSpec,
    collected: Collected,
) -> Ladder | None:
    """Compare with the outputs that the build left, where they are of these very samples."""
    forms = build.outputs()
    if not forms:
        return None
    counts = {len(values) for outputs in forms.values() for values in outputs.values()}
    if not build.is_of(dataset.fingerprint) or counts != {len(served[client.scored])}:
        collected.note("the build's outputs are of other samples: there is no accuracy ladder")
        return None
    limits = Limits.of(spec, (item.exactness for item in build.layers))
    through = build.through()
    if not through or build.recipe is None:
        return ladder.climb(
            {**forms, "served": served}, labels, scored=client.scored, limits=limits, classes=dataset.classes
        )
    # the network's own outputs down to the compiled form, and from there on what its pipeline's steps make of them
    inner = ladder.scored_output(build.recipe.model.outputs, spec.output, len(dataset.classes))
    first = ladder.climb(forms, labels, scored=inner, limits=limits, classes=dataset.classes)
    second = ladder.climb(
        {
            form: ranked.spread(found, client.ranked, client.width)
            for form, found in {**through, "served": served}.items()
        },
        labels,
        scored=client.scored,
        limits=limits,
        classes=dataset.classes,
    )
    return replace(first, rungs=(*first.rungs, *second.rungs[1:]), culprit=first.culprit or second.culprit)


def _own_metrics(target: str, outputs: dict[str, Array], labels: Array | None) -> dict[str, float]:
    """Call the recipe's ``module:function(outputs, labels)``; outputs are ``(n, ...)`` by name."""
    function = loading.load_user(target, where="measure.metric")
    try:
        return {str(name): float(value) for name, value in function(outputs, labels).items()}
    except Exception as error:
        raise MeasureError(f"'{target}' failed: {type(error).__name__}: {error}", where="measure.metric") from error
