"""What was measured, kept on disk after each measurement: a search that is killed goes on, and can be done again.

An entry's key says what was measured, its value what came out and how many seconds that took. A search spends the
seconds that are recorded, not those of the clock, so that the same record and seed give the same result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repo_builder.core import files, foreign
from repo_builder.core.errors import MeasureError

_SCHEMA = 1
Values = dict[str, Any]


class Ledger:
    """One file of measurements.

    Args:
        path: Where it is kept.
        machine: What its times hold for; a file of another machine is begun anew.
        replayed: A ledger to take measurements from, whatever machine it is of; what it does not have is measured.

    Raises:
        MeasureError: ``replayed`` cannot be read.
    """

    def __init__(self, path: Path, machine: str, *, replayed: Path | None = None) -> None:
        self.path, self.machine = path, machine
        self._old = {} if replayed is None else _read(replayed)["measured"]
        self._own: dict[str, Values] = {}
        if path.exists():
            try:
                kept = _read(path)
            except MeasureError:  # damaged: what it held is measured again
                kept = {}
            if kept.get("machine") == machine:
                self._own = kept["measured"]
        self.spent_s = 0.0
        self.fresh = 0

    def get(self, key: str, measure: Callable[[], Values]) -> Values:
        """Return what was measured under a key, or measure it now; its seconds are spent either way, once a search."""
        found = self._old.get(key) or self._own.get(key)
        if found is None:
            started = time.monotonic()
            found = measure()
            found["cost_s"] = round(time.monotonic() - started, 3)
            self.fresh += 1
        if key not in self._own:
            self._own[key] = found
            files.write_json(self.path, {"schema": _SCHEMA, "machine": self.machine, "measured": self._own})
        self.spent_s += float(found["cost_s"])
        return found


def _read(path: Path) -> Values:
    try:
        found: Values = foreign.parsed(json.loads, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MeasureError(f"cannot be read ({error})", where=str(path), hint="name a measured.json") from None
    rows = found.get("measured") if isinstance(found, dict) else None
    whole = isinstance(rows, dict) and all(
        isinstance(row, dict) and _is_number(row.get("cost_s")) for row in rows.values()
    )
    if not whole or found.get("schema") != _SCHEMA:
        raise MeasureError("holds no measurements of this schema", where=str(path), hint="name a measured.json")
    return found


def _is_number(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    return isinstance(value, int | float) and not isinstance(value, bool)
