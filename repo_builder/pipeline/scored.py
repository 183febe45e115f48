"""Which of a pipeline's outputs is scored."""

from __future__ import annotations

from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import MeasureSpec
from repo_builder.pipeline.chain import Chain


def scored(chain: Chain, measure: MeasureSpec, classes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the output that is scored; where that is the scores of the best classes, also its classes and scores.

    Args:
        chain: The pipeline.
        measure: The recipe's ``[measure]``.
        classes: Names of the classes.

    Raises:
        RecipeError: It is a classifier's, and no output tells classes.
    """
    outputs = chain.outputs
    there = {item.name for item in outputs}
    if measure.task != "classification":
        return measure.output if measure.output in there else outputs[0].name, ()
    whole = (item.name for item in outputs if item.dtype.numpy.kind == "f" and item.shape == (len(classes),))
    name = next(whole, "")
    if name:
        return name, ()
    for link in chain.after:
        if link.kind == "top_k" and {item.name for item in link.gives[:2]} <= there:
            best = tuple(item.name for item in link.gives[:2])
            return best[1], best
    raise RecipeError(
        "no output is one number a class, and none holds the best classes with their scores: nothing can be scored",
        where="pipeline.outputs",
        hint='name one in pipeline.outputs, or set measure.task = "other"',
    )
