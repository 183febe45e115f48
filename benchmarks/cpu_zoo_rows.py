"""Rows of ``cpu_zoo.py``: what turns say, which bars are met, and how that is told."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from repo_builder.core.pairs import paired

# of the time of quantize_static: what timing in turns can tell apart
ENOUGH = 0.97
# dB: both have the same ranges of the same 32 samples, and what is left between them is how halves of a step fall
ALIKE_DB = 0.1
BARS = {
    "as fast as quantize_static": "every layer in int8, at every batch size at least .97 times as fast",
    "as exact as quantize_static": f"every layer in int8, outputs' signal to noise at least as high, to {ALIKE_DB} dB",
    "never slower than fp32": "the default recipe, at every batch size; what it leaves in fp32 has a reason",
}


def compared(count: int, taken: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return what turns at one batch size say."""
    ratio = lambda a, b: round(statistics.median(x / y for x, y in zip(taken[a], taken[b], strict=True)), 3)  # noqa: E731
    against = paired(count, taken["fp32"], taken["default"])
    return {
        "cpu_ms": {kind: round(statistics.median(values) * 1e3, 3) for kind, values in taken.items()},
        "static_over_fp32": ratio("fp32", "static"),
        "ours_over_fp32": ratio("fp32", "ours"),
        "ours_over_static": ratio("static", "ours"),
        "default_over_fp32": ratio("fp32", "default"),
        "default_over_static": ratio("static", "default"),
        "default_against_fp32": against.verdict,
    }


def bars(row: Mapping[str, Any]) -> dict[str, bool]:
    """Return which bars a network's row meets."""
    batches, found = row["batches"].values(), row["sqnr_db"]
    return {
        "as fast as quantize_static": all(item["ours_over_static"] >= ENOUGH for item in batches),
        "as exact as quantize_static": found["ours"] >= found["static"] - ALIKE_DB,
        "never slower than fp32": all(item["default_against_fp32"] != "slower" for item in batches)
        and all(row["default"]["left_float"].values()),
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Return a table of the bars by network, and whether any is missed; rows of before there were bars are none."""
    judged = [row for row in rows if "bars" in row]
    lines, missed = [], False
    for bar, words in BARS.items():
        without = [row["network"] for row in judged if not row["bars"][bar]]
        missed |= bool(without)
        met = f"{len(judged) - len(without)} of {len(judged)}"
        lines.append(f"{bar} ({words}): {met}" + (f"; missed by {', '.join(without)}" if without else ""))
    return "\n".join(lines), missed


def line(row: Mapping[str, Any]) -> str:
    """Return a row in one line."""
    found, counts = row["sqnr_db"], row["int8_and_float_layers"]
    speeds = "  ".join(
        f"batch {size}: fp32 {item['cpu_ms']['fp32']:.2f} ms, static {item['static_over_fp32']:.2f}×, "
        f"ours {item['ours_over_fp32']:.2f}× ({item['ours_over_static']:.2f} of static), "
        f"default {item['default_over_fp32']:.2f}×"
        for size, item in row["batches"].items()
    )
    kinds = ("static", "ours", "default")
    return "; ".join([
        f"{row['network']}: {speeds}",
        f"dB {' '.join(format(found[kind], '.1f') for kind in kinds)}",
        f"layers {' '.join(str(counts[kind]) for kind in kinds)}",
        f"the default leaves {len(row['default']['left_float'])} in fp32",
        *(f"MISSED: {bar}" for bar, met in row["bars"].items() if not met),
    ])  # fmt: skip
