"""The committed record of what the campaigns found, and the table that docs/reliability.md shows of it."""

from __future__ import annotations

import datetime
import fcntl
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from results import Result

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
SCHEMA = 1
_BEGIN, _END = "<!-- campaign figures -->", "<!-- end of figures -->"
# What is tried → (figure, goal, what must hold of each)
ROWS: tuple[tuple[str, str, int, str], ...] = (
    ("kill", "kills", 200, "repository valid, an asked-for model whole in it, next build right, no litter"),
    ("fuzz", "inputs", 20_000, "one sentence and a documented exit code; no hang, no flood, no memory without bound"),
    ("attack", "malformed_requests", 10_000, "server alive, every good request beside them answered right"),
    ("faults", "faults", 0, "`perf` ends in time and in words; exit 0 only with answers"),
    ("properties", "examples", 0, "the property holds"),
)


def read() -> dict[str, Any]:
    """Return the record; an empty one where there is none."""
    if not RECORD.is_file() or not RECORD.stat().st_size:
        return {"schema": SCHEMA, "runs": []}
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def add(part: str, seed: int, seconds: float, result: Result) -> None:
    """Add a run to the record and write the page's table anew."""
    with RECORD.open("a") as held:  # two parts may end at the same time
        fcntl.flock(held, fcntl.LOCK_EX)
        _add(part, seed, seconds, result)


def _add(part: str, seed: int, seconds: float, result: Result) -> None:
    record = read()
    record["runs"].append({
        "part": part,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "seed": seed,
        "seconds": round(seconds),
        "figures": dict(sorted(result.figures.items())),
        "problems": dict(sorted(result.problems.items())),
    })  # fmt: skip
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")


def page(text: str, record: dict[str, Any]) -> str:
    """Return the page with the record's table between its two marks."""
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    return f"{before}{_BEGIN}\n\n{table(record)}\n{_END}{after}"


def table(record: dict[str, Any]) -> str:
    """Return the record's sums as a table in Markdown."""
    lines = ["| campaign | tried | problems | each must hold | time |", "|---|---:|---:|---|---:|"]
    for part, figure, goal, holds in ROWS:
        runs = [run for run in record["runs"] if run["part"] == part]
        tried = sum(run["figures"].get(figure, 0) for run in runs)
        problems = sum(sum(run["problems"].values()) for run in runs)
        seconds = sum(run["seconds"] for run in runs)
        wanted = f" (goal {goal:,})" if goal else ""
        lines.append(f"| {part} | {tried:,} {figure.replace('_', ' ')}{wanted} | {problems} | {holds} | {seconds} s |")
    sorts: Counter[str] = Counter()
    for run in record["runs"]:
        sorts.update({f"{run['part']}: {sort}": count for sort, count in run["problems"].items()})
    lines += ["", *(f"- {sort}: {count}" for sort, count in sorts.most_common())] if sorts else []
    commits = sorted({run["commit"] for run in record["runs"]})
    lines += ["", f"Made of commit {', '.join(commits)}." if commits else "No run is recorded yet."]
    return "\n".join(lines) + "\n"


def _commit() -> str:
    """Return the commit of the tree, marked where the package differs from it."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "repo_builder"], capture_output=True, text=True).stdout
    return f"{name} and changes" if changed.strip() else name or "unknown"
