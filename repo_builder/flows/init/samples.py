"""What the samples say of the task: whether outputs are classes, and which one."""

from __future__ import annotations

from dataclasses import dataclass

from repo_builder import datasets
from repo_builder.core.recipe import DataSpec
from repo_builder.flows.init.facts import Facts, Tensor


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is known of the data and the task.

    Attributes:
        source: ``[data] source``.
        task: ``[measure] task``.
        output: ``[measure] output``; None for the first.
        found: What was read, a sentence each.
        undecided: What is left to decide, a sentence each.
    """

    source: str
    task: str
    output: str | None
    found: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()


def read(name: str, facts: Facts, data: str | None) -> Told:
    """Read the samples as ``build`` does; without any, say what they have to be.

    Raises:
        DataError: They are missing, or do not fit the inputs.
        RecipeError: A function that should give them is not there.
    """
    scored = _per_class(facts.outputs, None)
    if data is None:
        task = "classification" if scored else "other"
        doubts = (
            f"data: put samples into {name}.npz ({_arrays(facts)}), or name others in [data] source",
            _guess(task),
        )
        return Told(source=f"{name}.npz", task=task, output=_named(scored, facts), undecided=doubts)
    if any(item.shape is None for item in facts.inputs):
        task = "classification" if scored else "other"
        return Told(source=data, task=task, output=_named(scored, facts), undecided=(_guess(task),))
    inputs = tuple(item.spec() for item in facts.inputs)
    dataset = datasets.load(DataSpec(source=data), inputs=inputs, seed=0)
    count = len(dataset.classes)
    labels = dataset.split("test").labels
    if not count:
        task = "classification" if scored and labels is None else "other"
        said = "no labels" if labels is None else "labels that are no classes"
        return Told(
            source=data,
            task=task,
            output=_named(scored, facts),
            found=(f"data: {said}",),
            undecided=(_guess(task),) if labels is None else (),
        )
    fitting = _per_class(facts.outputs, count)
    if fitting is None:
        doubt = f"task: the data has {count} classes, and no output has one number a class"
        return Told(source=data, task="other", output=None, undecided=(doubt,))
    found = f"task: classification, '{fitting.name}' has a number for each of the {count} classes of the data"
    return Told(source=data, task="classification", output=_named(fitting, facts), found=(found,))


def _guess(task: str) -> str:
    return f'task: "{task}" is a guess by the outputs\' shapes ("classification" is for one number a class)'


def _per_class(outputs: tuple[Tensor, ...], classes: int | None) -> Tensor | None:
    """Return the first output that has one number a class."""
    for item in outputs:
        if item.shape is not None and len(item.shape) == 1 and item.dtype.numpy.kind == "f":
            size = item.shape[0]
            if size == classes or (classes is None and size > 1):
                return item
    return None


def _named(scored: Tensor | None, facts: Facts) -> str | None:
    return scored.name if scored is not None and len(facts.outputs) > 1 else None


def _arrays(facts: Facts) -> str:
    """Return what a .npz file has to hold, in words."""
    parts = []
    for item in facts.inputs:
        sizes = "..." if item.shape is None else ", ".join("any" if size == -1 else str(size) for size in item.shape)
        parts.append(f"'{item.name}' {item.dtype.value} (samples{', ' if sizes else ''}{sizes})")
    return f"arrays {', '.join(parts)}, and 'y' with class numbers where there are any"
