"""What is declared at a field beside its type: what it may not be, ``Annotated[int, Bound(ge=1)]``; its former name."""

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
        nonempty: Whether an array must hold something.
        pattern: Regular expression that the whole string matches.
        most_bytes: Length that a string has at the most, in bytes of UTF-8.
        must: What is said behind the value, as in ``is not a fraction``; empty says which limit is broken.
        says: What is said in place of the value and the rule.
        hint: What to write instead.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    nonempty: bool = False
    pattern: str | None = None
    most_bytes: int | None = None
    must: str = ""
    says: str = ""
    hint: str | None = None

    def check(self, value: Any, path: str) -> None:  # noqa: ANN401 - a value of the field's type
        """Refuse a value.

        Args:
            value: A value of the field's type.
            path: Its key path.

        Raises:
            RecipeError: It is out of bounds.
        """
        broken = self.broken(value)
        if broken:
            raise RecipeError(self.says or f"{shown(value)} {self.must or broken}", where=path, hint=self.hint)

    def words(self) -> str:
        """Return the limits in words, as in ``at least 1``; of a limit of machines alone, nothing."""
        told = ((words, getattr(self, name)) for name, words, _ in _LIMITS)
        limits = [f"{words} {limit:g}" for words, limit in told if limit is not None and limit < _MACHINES]
        if self.nonempty:
            limits.append("not empty")
        return " and ".join(limits)

    def broken(self, value: Any) -> str:  # noqa: ANN401 - a value of the field's type
        """Return the rule that a value breaks, in words; empty where it breaks none."""
        if self.nonempty and not value:
            return "must not be empty"
        if self.pattern is not None and re.fullmatch(self.pattern, value) is None:
            return f"is not of the form {self.pattern}"
        if self.most_bytes is not None and len(value.encode("utf-8", "replace")) > self.most_bytes:
            return f"is longer than {self.most_bytes} bytes"
        if self.ge == 0 and value < 0:
            return "must not be negative"
        return next(
            (
                f"must be {words} {limit:,}".replace(",", "")
                for name, words, holds in _LIMITS
                if (limit := getattr(self, name)) is not None and not holds(value, limit)
            ),
            "",
        )


@dataclass(frozen=True)
class Former:
    """The name that a field had when its value was in another unit; that name is refused with what to write now.

    Attributes:
        name: The name.
        times: What its value is multiplied by to be the field's.
    """

    name: str
    times: float

    def hint(self, now: str, value: Any) -> str:  # noqa: ANN401 - whatever a user wrote
        """Return what to write instead of the former name and its value.

        Args:
            now: The field's name.
            value: What stood at the former name.
        """
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MACHINES
        # 12 digits: 0.007 * 100 is 0.7000000000000001
        return f"write {now} = {value * self.times:.12g}" if number else f"write {now}"


_MACHINES = 2**31 - 1  # a limit of this size or more is what a field of config.pbtxt holds, and no news to a reader
_LIMITS = (
    ("ge", "at least", operator.ge),
    ("gt", "above", operator.gt),
    ("le", "at most", operator.le),
    ("lt", "below", operator.lt),
)


def shown(value: Any) -> str:  # noqa: ANN401 - any value
    """Return a value as a message shows it: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 200:  # repr of thousands of digits is an error of its own
        return f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"
    try:
        text = f"'{value}'" if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):
        return f"a deep {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:76]} ..."
