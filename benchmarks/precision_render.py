"""The precision table as Markdown, and accuracy against latency as a picture."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from repo_builder import files

BATCHES = ("1", "8", "64", "256")
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
    files.write_text(results.with_suffix(".md"), markdown(document))
    files.write_text(results.with_suffix(".svg"), picture(document["rows"]))


def markdown(document: dict[str, Any]) -> str:
    """Return the tables, one set a model, and the bars."""
    machine = document["machine"]
    gpu = machine["gpus"][0]
    lines = [
        "# Precision, accuracy, latency and energy",
        "",
        f"{gpu['name']}, driver {gpu['driver']}, TensorRT {machine['libraries'].get('tensorrt')}, CUDA "
        f"{machine['cuda']['runtime']}, torch {machine.get('torch', {}).get('torch', 'not measured')}; "
        f"made {document['made']} by `benchmarks/precision_table.py`. Latency is the GPU's time for one batch, "
        "microseconds, p50 / p99 of 300 runs; power and energy are over idle, at batch 64.",
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
    """Return accuracy against latency at batch 64 as SVG, one panel a model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    width, height = 460, 360
    panels = [_panel(model, rows, place * width, width, height) for place, model in enumerate(models)]
    body = "".join(panels)
    style = (
        "<style>text{font:11px sans-serif;fill:#1f2937}.t{font-size:13px;font-weight:bold}.g{stroke:#e5e7eb}</style>"
    )
    size = f'width="{width * len(models)}" height="{height}" viewBox="0 0 {width * len(models)} {height}"'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{paper}{body}</svg>\n'


def _panel(model: str, rows: Sequence[dict[str, Any]], left: int, width: int, height: int) -> str:
    points = [
        (row["row"], row["latency_us"]["64"]["p50"], 100 * row["accuracy"]["top1"])
        for row in rows
        if row["model"] == model and "failed" not in row
    ]
    if not points:
        return ""
    x0, x1, y0, y1 = left + 55, left + width - 20, height - 45, 40
    logs = [math.log10(item[1]) for item in points]
    low, high = min(logs) - 0.05, max(logs) + 0.05
    bottom, top = min(item[2] for item in points) - 0.1, max(item[2] for item in points) + 0.1
    parts = [f'<text class="t" x="{x0}" y="22">{model}: top-1 (%) against latency at batch 64 (µs)</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y, x = y0 + share * (y1 - y0), x0 + share * (x1 - x0)
        parts.append(f'<line class="g" x1="{x0}" x2="{x1}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{bottom + share * (top - bottom):.2f}</text>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{y0 + 18}" text-anchor="middle">{10 ** (low + share * (high - low)):.0f}</text>'
        )
    for name, micros, top1 in points:
        x = x0 + (math.log10(micros) - low) / (high - low) * (x1 - x0)
        y = y0 + (top1 - bottom) / (top - bottom) * (y1 - y0)
        colour = next((value for prefix, value in _COLOURS.items() if name.startswith(prefix)), "#6b7280")
        label = html.escape(name)
        tip = f"<title>{label} {micros:.0f} µs {top1:.2f} %</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{tip}</circle>')
        anchor = "end" if x > (x0 + x1) / 2 else "start"
        shift = -7 if anchor == "end" else 7
        parts.append(f'<text x="{x + shift:.1f}" y="{y + 3:.1f}" text-anchor="{anchor}" font-size="9">{label}</text>')
    return "".join(parts)
