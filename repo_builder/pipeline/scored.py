"""Which of a pipeline's outputs is scored."""

from __future__ import annotations

from dataclasses import dataclass

from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import MeasureSpec
from repo_builder.pipeline.chain import Chain


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What is scored.

    Attributes:
        name: Name of the output.
        ranked: Names of the outputs of the best classes and of their scores, where ``name`` is these scores; else none.
        width: Number of classes that the best are of; 0 without.
    """

    name: str
    ranked: tuple[str, ...] = ()
    width: int = 0


def scored(chain: Chain, measure: MeasureSpec, classes: tuple[str, ...]) -> Scored:
    """Return which output is scored: one number a class, or the best classes with their scores.

    Args:
        chain: The pipeline.
        measure: The recipe's ``[measure]``.
        classes: Names of the classes; none where the data has none, so that nothing is scored as classes.

    Raises:
        RecipeError: It is a classifier's, and no output tells classes.
    """
    outputs = chain.outputs
    there = {item.name for item in outputs}
    if measure.task != "classification" or not classes:
        asked = measure.output
        return Scored(name=asked if asked in there else outputs[0].name)
    best = [link for link in chain.after if link.kind == "top_k" and {item.name for item in link.gives[:2]} <= there]
    scores = {link.gives[1].name for link in best}
    rows = [
        item for item in outputs if item.dtype.numpy.kind == "f" and len(item.shape) == 1 and item.name not in scores
    ]
    exact = next((item.name for item in rows if item.shape == (len(classes),)), "")
    if exact:
        return Scored(name=exact)
    if best:
        found, kept = best[0].takes[0], tuple(item.name for item in best[0].gives[:2])
        return Scored(name=kept[1], ranked=kept, width=found.shape[-1])
    if rows:  # of classes that are numbers the data may have fewer
        return Scored(name=rows[0].name)
    raise RecipeError(
        "no output is one number a class, and none holds the best classes with their scores: nothing can be scored",
        where="pipeline.outputs",
        hint='name one in pipeline.outputs, or set measure.task = "other"',
    )
