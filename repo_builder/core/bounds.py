"""What a value may not be although its type is right, declared at the field: ``Annotated[int, Bound(ge=1)]``."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

from repo_builder.core.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Limits of one value.

    Attributes:
        ge: Least value.
        gt: Value that it is above.
        le: Greatest value.
        lt: Value that it is below.
        nonempty: Whether a string or an array must hold something.
        pattern: Regular expression that the whole string matches.
        must: The rule in words, as in ``must be a fraction between 0 and 1``; empty derives it from the limits.
        hint: What to write instead.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    nonempty: bool = False
    pattern: str | None = None
    must: str = ""
    hint: str | None = None

    def check(self, value: Any, path: str) -> None:  # noqa: ANN401 - a value of the field's type
        """Refuse a value.

        Raises:
            RecipeError: It is out of bounds; names ``path``.
        """
        if not self.holds(value):
            raise RecipeError(f"{shown(value)} {self.must or 'must be ' + self.words()}", where=path, hint=self.hint)

    def holds(self, value: Any) -> bool:  # noqa: ANN401 - a value of the field's type
        """Whether a value of the right type is within the bounds."""
        if self.nonempty and not value:
            return False
        if self.pattern is not None:
            return re.fullmatch(self.pattern, value) is not None
        limits = ((self.ge, operator.ge), (self.gt, operator.gt), (self.le, operator.le), (self.lt, operator.lt))
        return all(compare(value, limit) for limit, compare in limits if limit is not None)

    def words(self) -> str:
        """Return the limits in words, as in ``at least 1`` or ``from 13 to 21``."""
        if self.nonempty or self.pattern is not None:
            return "non-empty" if self.nonempty else f"of the form {self.pattern}"
        if self.ge is not None and self.le is not None:
            return f"from {self.ge:g} to {self.le:g}"
        limits = (("at least", self.ge), ("above", self.gt), ("at most", self.le), ("below", self.lt))
        return " and ".join(f"{words} {limit:g}" for words, limit in limits if limit is not None)


def shown(value: Any) -> str:  # noqa: ANN401 - any value
    """Return a value as a message shows it: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 200:  # repr of thousands of digits is an error of its own
        return f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"
    try:
        text = f"'{value}'" if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):
        return f"a deep {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:76]} ..."
