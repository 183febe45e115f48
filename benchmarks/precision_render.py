"""The precision table as Markdown, and accuracy against latency as a picture."""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from repo_builder.core import files

BATCHES = ("1", "8", "64", "256")
_WIDTH, _HEIGHT, _LABELS, _LINE = 860, 330, 560, 13  # of a panel; where its labels begin, and how far they are apart
_Mark = tuple[float, float, str, str]  # x, y, row, what is said of it
_COLOURS = {
    "torch": "#d97706",
    "ONNX": "#7c3aed",
    "TensorRT fp": "#2563eb",
    "TensorRT int8": "#059669",
    "TensorRT mixed": "#0d9488",
}


def render(results: Path) -> None:
    """Write the table and the picture beside the results."""
    document = json.loads(results.read_text(encoding="utf-8"))
    files.write_text(results.with_suffix(".md"), markdown(document, f"{results.stem}.svg"))
    files.write_text(results.with_suffix(".svg"), picture(document["rows"]))


def markdown(document: dict[str, Any], shown: str) -> str:
    """Return the picture of that name, the tables, one set a model, and the bars."""
    machine = document["machine"]
    gpu = machine["gpus"][0]
    lines = [
        "# Precision, accuracy, latency and energy",
        "",
        f"{gpu['name']}, driver {gpu['driver']}, TensorRT {machine['libraries'].get('tensorrt')}, CUDA "
        f"{machine['cuda']['runtime']}, torch {machine.get('torch', {}).get('torch', 'not measured')}; "
        f"made {document['made']} by `benchmarks/precision_table.py`. Latency is the GPU's time for one batch, "
        "microseconds, p50 / p99 of 300 runs (of ONNX Runtime the host's time for one call); power and energy are over "
        "idle, at batch 64. Rows share a timing cache: the first of a kind measures for all and takes longer to build.",
        "",
        f"![Accuracy against latency of every row]({shown})",
    ]
    models = list(dict.fromkeys(row["model"] for row in document["rows"]))
    for model in models:
        rows = [row for row in document["rows"] if row["model"] == model]
        good = [row for row in rows if "failed" not in row]
        lines += ["", f"## {model}", "", *_accuracy(good), "", "Copies left out:", "", *_latency(good, "latency_us")]
        lines += ["", "Copies included:", "", *_latency(good, "with_copies_us"), "", *_cost(good)]
        lines += [f"\n`{row['row']}` failed: {row['failed']}" for row in rows if "failed" in row]
    return "\n".join([*lines, "", *_bars(document["rows"]), ""])


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(headings) + " |",
        "| --- |" + " ---: |" * (len(headings) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _accuracy(rows: Sequence[dict[str, Any]]) -> list[str]:
    headings = ("row", "top-1", "95 % interval", "macro precision", "macro recall", "macro F1", "loss")
    body = []
    for row in rows:
        found = row["accuracy"]
        numbers = [f"{found[name]:.4f}" for name in ("macro_precision", "macro_recall", "macro_f1", "loss")]
        body.append([row["row"], f"{found['top1']:.4f}", f"{found['low']:.4f} – {found['high']:.4f}", *numbers])
    return _table(headings, body)


def _latency(rows: Sequence[dict[str, Any]], key: str) -> list[str]:
    body = []
    for row in rows:
        cells = [_pair(row[key].get(size)) for size in BATCHES]
        best = [1e6 * int(size) / row[key][size]["p50"] for size in BATCHES if size in row[key]]
        body.append([row["row"], *cells, f"{max(best):,.0f}"])
    return _table(("row", *(f"batch {size}" for size in BATCHES), "best inferences/s"), body)


def _pair(found: dict[str, float] | None) -> str:
    return f"{found['p50']:.1f} / {found['p99']:.1f}" if found else ""


def _cost(rows: Sequence[dict[str, Any]]) -> list[str]:
    body = []
    for row in rows:
        energy = row.get("energy") or {}
        built = row.get("build_seconds")
        seconds = sum(built.values()) if isinstance(built, dict) else built
        body.append([
            row["row"],
            f"{row['plan_bytes'] / 1e6:.2f}" if "plan_bytes" in row else "",
            f"{seconds:.1f}" if seconds else "",
            f"{energy['inferences_per_s']:,.0f}" if energy else "",
            f"{energy['power_over_idle_w']:.0f}" if energy else "",
            f"{energy['energy_per_1000_j']:.3f}" if energy else "",
        ])  # fmt: skip
    headings = ("row", "plan MB", "build s", "inferences/s, batch 64", "W over idle", "J per 1,000 inferences")
    return _table(headings, body)


def _bars(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what was promised of VGG7 and what was found."""
    vgg = {row["row"]: row for row in rows if row["model"] == "vgg7" and "failed" not in row}
    compiled = [row["latency_us"]["64"]["p50"] for name, row in vgg.items() if "torch.compile" in name]
    if "TensorRT fp32" not in vgg or "TensorRT fp16" not in vgg:
        return []
    top1, half = vgg["TensorRT fp32"]["accuracy"]["top1"], vgg["TensorRT fp16"]["latency_us"]["64"]["p50"]
    body = []
    for name, row in vgg.items():
        if not name.startswith("TensorRT int8-") or "only" in name:
            continue
        mine = row["latency_us"]["64"]["p50"]
        points = 100 * (row["accuracy"]["top1"] - top1)
        ratio = f"{min(compiled) / mine:.2f}" if compiled else ""
        body.append([name, f"{points:+.2f}", f"{half / mine:.2f}", ratio])
    headings = ("VGG7, batch 64", "points of top-1 against fp32", "× TensorRT fp16", "× best torch.compile")
    return ["## Bars: within 0.3 points, at least 1.2 ×, at least 1.8 ×", "", *_table(headings, body)]


def picture(rows: Sequence[dict[str, Any]]) -> str:
    """Return accuracy against latency at batch 64 as SVG, one panel a model, one below the other."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    body = "".join(_panel(model, rows, place * _HEIGHT) for place, model in enumerate(models))
    style = (
        "<style>text{font:11px sans-serif;fill:#1f2937}.t{font-size:13px;font-weight:bold}"
        ".s{font-size:10px}.g{stroke:#e5e7eb}.l{stroke:#9ca3af;stroke-width:0.6;fill:none}</style>"
    )
    size = f'width="{_WIDTH}" height="{_HEIGHT * len(models)}" viewBox="0 0 {_WIDTH} {_HEIGHT * len(models)}"'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{paper}{body}</svg>\n'


def _panel(model: str, rows: Sequence[dict[str, Any]], top: int) -> str:
    points = [
        (row["row"], row["latency_us"]["64"]["p50"], 100 * row["accuracy"]["top1"])
        for row in rows
        if row["model"] == model and "failed" not in row
    ]
    if not points:
        return ""
    x0, x1, y0, y1 = 55, _LABELS - 70, top + _HEIGHT - 40, top + 40
    low, high = math.log10(min(item[1] for item in points)) - 0.05, math.log10(max(item[1] for item in points)) + 0.05
    least, most = min(item[2] for item in points) - 0.1, max(item[2] for item in points) + 0.1
    parts = [f'<text class="t" x="{x0}" y="{top + 22}">{model}: top-1 (%) against latency at batch 64 (µs)</text>']

    def across(micros: float) -> float:
        return x0 + (math.log10(micros) - low) / (high - low) * (x1 - x0)

    def up(percent: float) -> float:
        return y0 + (percent - least) / (most - least) * (y1 - y0)

    for tick in _steps(least, most):
        y = up(tick)
        parts.append(f'<line class="g" x1="{x0}" x2="{x1}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.1f}</text>')
    for micros in (digit * 10**power for power in range(5) for digit in (1, 2, 5)):
        x = across(micros)
        if x0 <= x <= x1:
            parts.append(f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{y0}" y2="{y1}"/>')
            parts.append(f'<text x="{x:.1f}" y="{y0 + 18}" text-anchor="middle">{micros}</text>')
    marks = _fanned([
        (across(micros), up(top1), name, f"{html.escape(name)} {micros:.0f} µs {top1:.2f} %")
        for name, micros, top1 in points
    ])  # fmt: skip
    for (x, y, name, tip), label in zip(marks, _spread(marks, y1, y0), strict=True):
        colour = next((value for prefix, value in _COLOURS.items() if name.startswith(prefix)), "#6b7280")
        parts.append(f'<path class="l" d="M{x:.1f},{y:.1f} L{x1 + 8},{label:.1f} H{_LABELS - 3}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{tip}</title></circle>')
        parts.append(f'<text class="s" x="{_LABELS}" y="{label + 3:.1f}">{tip}</text>')
    return "".join(parts)


def _steps(least: float, most: float) -> Iterable[float]:
    """Return the multiples of a round step between two values, about five of them."""
    step = next(size for size in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if (most - least) / size <= 8)
    return [step * place for place in range(math.ceil(least / step), math.floor(most / step) + 1)]


def _fanned(marks: Sequence[_Mark]) -> list[_Mark]:
    """Return points as their labels stand, from above: of equal ones the left are the outer, so no lines cross."""
    found: list[_Mark] = []
    for _, group in itertools.groupby(sorted(marks, key=lambda mark: mark[1]), key=lambda mark: round(mark[1] / 8)):
        from_left = sorted(group)
        found += from_left[::2] + from_left[1::2][::-1]
    return found


def _spread(marks: Sequence[_Mark], top: float, bottom: float) -> list[float]:
    """Return where the labels of fanned points go: near their points, a line apart, none beyond the panel."""
    places: list[float] = []
    for _, y, *_ in marks:
        places.append(max(y, places[-1] + _LINE if places else top))
    # as far up as all of them were pushed down on average
    shift = sum(place - mark[1] for place, mark in zip(places, marks, strict=True)) / len(places)
    places = [place - shift for place in places]
    for place in reversed(range(len(places))):
        below = places[place + 1] - _LINE if place + 1 < len(places) else bottom
        places[place] = min(places[place], below)
    for place in range(len(places)):
        places[place] = max(places[place], places[place - 1] + _LINE if place else top)
    return places
