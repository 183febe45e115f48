"""Write the table of docs/tuning.md from what ``tune_vs_grid.py`` and ``model_analyzer.py`` measured.

python benchmarks/tune_table.py benchmarks/results/tune_vs_grid.json docs/tuning.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_BEGIN, _END = "<!-- table of benchmarks/tune_table.py -->", "<!-- end of the table -->"
_HEAD = (
    "model", "limit", "grid: loads, time", "tune: loads, time", "tune over the grid's best, in turns",
    "as the grid's single levels say", "Model Analyzer: configurations, loads, time", "tune over its choice, in turns",
)  # fmt: skip


def main(arguments: list[str]) -> None:
    """Replace what stands between the two comments."""
    source, page = map(Path, arguments)
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    table = rendered(json.loads(source.read_text(encoding="utf-8")))
    page.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}", encoding="utf-8")


def rendered(result: dict[str, Any]) -> str:
    """Return the table, with what machine it is of."""
    about = result["about"]
    rows = [_row(name, one) for name, one in result.items() if name != "about"]
    lines = [_HEAD, tuple("---" if place == 0 else "---:" for place in range(len(_HEAD))), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{about['cores']} cores, {about['environment']['cpu']}, {about['date']}:\n\n{table}"


def _row(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    grid, tune, pair, other = one["grid"], one["tune"], one.get("paired"), one.get("model_analyzer")
    return (
        name,
        f"{one['max_p99_ms']:g} ms",
        f"{len(grid['rows'])}, {grid['seconds']:.0f} s",
        f"{tune['loads']}, {tune['seconds']:.0f} s",
        _ratio(pair, "median_ratio", "median_interval"),
        f"{one['grid_share']:.1%}".replace("%", " %") if one.get("grid_share") else "–",
        f"{other['configurations']}, {other['loads']}, {other['seconds']:.0f} s" if other else "–",
        _ratio(other.get("paired") if other else None, "tune_over_model_analyzer", "interval"),
    )


def _ratio(pair: dict[str, Any] | None, value: str, interval: str) -> str:
    if not pair:
        return "–"
    if pair.get("same"):
        return "the same configuration"
    low, high = pair[interval]
    return f"× {pair[value]:.3f} [{low:.2f} – {high:.2f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
