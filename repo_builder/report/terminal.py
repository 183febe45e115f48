"""A run as tables on a terminal; plain text where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from repo_builder.core import tables
from repo_builder.report import numbers
from repo_builder.report.verdict import verdict
from repo_builder.results import AccuracyResult, Comparison, Hardware, Ladder, LevelResult, PerfRun

_MARKS = {"bad": ("✗", "red"), "warning": ("!", "yellow"), "good": ("✓", "green")}
_MOST_CLASSES = 12


def show(run: PerfRun, console: Console) -> None:
    """Print a run: accuracy, ladder, levels, where the time goes, and the verdict last, where the eye is."""
    server = f"{run.server.name} {run.server.version} at {run.server.url} ({run.server.protocol})"
    _line(console, f"{run.model} version {run.model_version}, backend {run.backend}, on {server}", "bold")
    if run.accuracy:
        _accuracy(run.accuracy, console)
    for name, value in run.metrics.items():
        _line(console, f"  {name}  {value:.6g}")
    if run.ladder:
        tables.show(_ladder(run.ladder), console)
    if run.levels:
        tables.show(_levels(run.levels), console)
        if any(item.server for item in run.levels):
            tables.show(_times(run.levels), console)
        if any(item.streaming for item in run.levels):
            tables.show(_streaming(run.levels), console)
    for item in run.levels:
        if item.explanation:
            _line(console, f"{item.level}: largest is {item.explanation.largest}: {item.explanation.suggestion}")
    gpus = [(item, item.hardware) for item in run.levels if item.hardware and item.hardware.gpus]
    if gpus:
        tables.show(_gpus(gpus), console)
    if run.comparison:
        tables.show(_comparison(run.comparison), console)
    console.print()
    for sentence in verdict(run):
        mark, colour = _MARKS[sentence.tone]
        console.print(Text.assemble((f"{mark} ", colour), sentence.text), soft_wrap=True)


def _accuracy(result: AccuracyResult, console: Console) -> None:
    loss = "" if result.loss is None else f"loss {result.loss:.4f}  "
    _line(
        console,
        f"  top-1 {numbers.percent(result.top1)}  [{numbers.interval(result.low, result.high)}]  macro precision "
        f"{numbers.percent(result.macro_precision)}  recall {numbers.percent(result.macro_recall)}  "
        f"F1 {numbers.percent(result.macro_f1)}  {loss}on {result.samples:,} held-out samples",
    )
    if len(result.confusion) <= _MOST_CLASSES and result.confusion:
        _line(console, "Confusion matrix (rows: label, columns: prediction)", "bold")
        table = _table("", ["", *result.classes])
        for name, row in zip(result.classes, result.confusion, strict=True):
            _row(table, name, *(str(cell) if cell else "·" for cell in row))
        tables.show(table, console)


def _ladder(ladder: Ladder) -> Table:
    table = _table(
        "Accuracy ladder",
        [
            "form",
            "top-1",
            "95 % interval",
            "agrees with above",
            "largest diff",
            "SQNR",
            "worst output",
            "McNemar p",
            "",
        ],
    )
    for rung in ladder.rungs:
        _row(
            table,
            rung.form,
            numbers.percent(rung.top1),
            numbers.interval(rung.low, rung.high),
            numbers.percent(rung.agreement),
            numbers.small(rung.max_abs_diff),
            "–" if rung.sqnr_db is None else f"{rung.sqnr_db:.1f} dB",
            rung.worst,
            numbers.small(rung.p_value),
            "departs" if rung.departs else "",
            style="red" if rung.departs else None,
        )
    return table


def _levels(levels: Sequence[LevelResult]) -> Table:
    open_loop = any(item.latency_from_due for item in levels)
    refusing = any(item.refused for item in levels)
    heads = ["load", "infer/s", "p50", "p90", "p95", "p99", "p99.9", "max", "samples", "errors", ""]
    if refusing:
        heads[10:10] = ["refused"]
    if open_loop:
        heads[8:8] = ["p99 from due"]
    table = _table("Latency and throughput", heads)
    for item in levels:
        latency, due = item.latency, item.latency_from_due
        cells = [
            str(item.level),
            numbers.rate(item.infer_per_s),
            *(numbers.time_us(getattr(latency, f"{name}_us", None)) for name in ("p50", "p90", "p95", "p99", "p999")),
            numbers.time_us(latency.max_us if latency else None),
            *([numbers.time_us(due.p99_us if due else None)] if open_loop else []),
            f"{latency.samples:,}" if latency else "0",
            f"{item.errors:,}",
            *([f"{item.refused:,}"] if refusing else []),
            "ended early" if item.stopped else "unstable" if item.stable is False else "",
        ]
        _row(table, *cells, style="yellow" if item.stable is False else None)
    return table


def _times(levels: Sequence[LevelResult]) -> Table:
    heads = [
        "load",
        "mean",
        "queue",
        "input",
        "infer",
        "output",
        "cache",
        "network + client",
        "ran batch",
        "client CPU",
    ]
    table = _table("Where the time goes (means a request)", heads)
    for item in levels:
        for place, server in enumerate(item.server):
            first = place == 0
            whole = item.latency.mean_us if item.latency and first else server.total_us
            _row(
                table,
                str(item.level) if first else f"  of which {server.model}",
                *(
                    numbers.time_us(value)
                    for value in (
                        whole,
                        server.queue_us,
                        server.compute_input_us,
                        server.compute_infer_us,
                        server.compute_output_us,
                        server.cache_us,
                    )
                ),
                numbers.time_us(item.network_and_client_us) if first else "",
                f"{server.inferences / max(1, server.executions):.1f}",
                numbers.time_us(item.client.cpu_us_per_request) if item.client and first else "",
            )
    return table


def _streaming(levels: Sequence[LevelResult]) -> Table:
    heads = ["load", "first response p50", "p99", "gap between responses p50", "p99", "responses/request"]
    table = _table("Responses of a decoupled model", heads)
    for item in levels:
        if item.streaming:
            pairs = (item.streaming.first_response, item.streaming.gap)
            cells = [numbers.time_us(getattr(part, f"{name}_us", None)) for part in pairs for name in ("p50", "p99")]
            _row(table, str(item.level), *cells, f"{item.streaming.responses_per_request:.4g}")
    return table


def _gpus(levels: Sequence[tuple[LevelResult, Hardware]]) -> Table:
    heads = ["load", "GPU", "utilisation", "memory", "power", "idle power", "energy/inference"]
    table = _table("GPUs", heads)
    for item, hardware in levels:
        for gpu in hardware.gpus:
            _row(
                table,
                str(item.level),
                gpu.name,
                numbers.percent(gpu.utilisation, 0),
                numbers.bytes_(gpu.memory_used_bytes),
                *("–" if value is None else f"{value:.0f} W" for value in (gpu.power_w, gpu.idle_power_w)),
                numbers.energy(gpu.energy_j_per_inference),
            )
    return table


def _comparison(comparison: Comparison) -> Table:
    table = _table(f"Against the baseline of {comparison.baseline_date}", ["figure", "before", "now", "how sure", ""])
    for item in comparison.findings:
        form = numbers.percent if item.what == "top-1" else numbers.time_us
        _row(
            table,
            item.what,
            form(item.before),
            form(item.after),
            item.how,
            "worse" if item.worse else "",
            style="red" if item.worse else None,
        )
    return table


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False)
    table.title_style = "bold"
    for place, head in enumerate(heads):
        table.add_column(Text(numbers.one_line(head)), justify="left" if place == 0 else "right", no_wrap=place == 0)
    return table


def _row(table: Table, *cells: str, style: str | None = None) -> None:
    """Add a row whose cells are text, whatever a label or a model is called: rich would read ``[/x]`` as markup."""
    table.add_row(*(Text(numbers.one_line(item)) for item in cells), style=style)


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
