"""``[search]``: how far a search for precisions may go, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from repo_builder.core import codec
from repo_builder.core.bounds import Bound
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe.bounds import Count


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """``[search]``: choose precisions by measured time and accuracy, as ``build --search`` does; the table turns it on.

    Attributes:
        max_drop: Most percentage points of accuracy that may be lost on the validation samples. Outputs that are no
            classes are held to ``measure.output_sqnr_db`` or ``measure.output_tolerance`` instead.
        budget_s: Seconds that measuring may take.
        samples: Validation samples that each choice is looked at on. Where it keeps ``max_drop`` on them and chance may
            have it so, twice as many are, up to all that are not held back. Held back is half of the validation
            split, at most four times as many: what was chosen is confirmed on them.
        seed: Seed of what is drawn; left out, the recipe's.
    """

    max_drop: Annotated[float, Bound(ge=0, le=100)] = 0.3
    budget_s: Annotated[float, Bound(gt=0, le=604800)] = 600.0
    samples: Count = 1024
    seed: Annotated[int, Bound(ge=0, lt=2**32)] | None = None


def limits(table: SearchSpec | None, asked: bool, **given: float | None) -> SearchSpec | None:
    """Return the limits of a search, what is given over a recipe's table; None where none is asked for.

    Args:
        table: The recipe's.
        asked: Whether there is to be one whatever the recipe says.
        given: Values over the table's; None leaves one as it is.

    Raises:
        RecipeError: A value is given and there is no search, or it is out of bounds.
    """
    said = {name: value for name, value in given.items() if value is not None}
    if not asked and table is None:
        if said:
            raise RecipeError(f"{', '.join(said)}: there is no search that this is of", hint="ask for a search")
        return None
    return codec.build(SearchSpec, {**codec.plain(table or SearchSpec()), **said}, "search")
