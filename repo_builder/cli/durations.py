"""Durations as people write them: 90s, 10m, 1.5h."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Seconds(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic in newer releases alone
    """A duration; its value is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Return the seconds of a text, or fail with what is right."""
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s?(s|m|min|h|)", value.strip().lower())
        seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
        if not 0 < seconds <= 604800:
            self.fail(f"'{value}' is no time of up to a week: write 90s, 10m or 1h", param, ctx)
        return seconds
