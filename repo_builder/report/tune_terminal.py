"""A search as tables on a terminal; plain text where there is none."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from repo_builder.core import tables
from repo_builder.report import numbers, tuned
from repo_builder.results.tuning import Trial, TrialLevel, TuneRun

_MARKS = {"bad": ("✗", "red"), "warning": ("!", "yellow"), "good": ("✓", "green")}


def show(run: TuneRun, console: Console) -> None:
    """Print a search: every trial with its best load, the best in turns, and what came of it last."""
    limit = f"p99 under {run.max_p99_ms:g} ms" if run.max_p99_ms is not None else "no limit of p99"
    head = f"{run.model} ({run.backend}), {run.server}: highest {run.objective}, {limit}, batch {run.batch_size}"
    console.print(head, style="bold", markup=False)
    tables.show(_trials(run), console)
    if run.finalists:
        tables.show(_finalists(run), console)
    console.print(
        f"{len(run.trials)} of {run.space_size} configurations, {run.levels} loads, {run.seconds:.0f} s; "
        f"{'; '.join(run.notes)}",
        markup=False,
        soft_wrap=True,
    )
    for tone, text in tuned.sentences(run):
        mark, colour = _MARKS[tone]
        console.print(Text.assemble((f"{mark} ", colour), numbers.one_line(text)), soft_wrap=True)


def _trials(run: TuneRun) -> Table:
    table = Table(title="Trials", title_justify="left", box=None, pad_edge=False)
    for name in ("trial", "configuration", "state", "load", "infer/s", "p50", "p99", "batch", "CPU", "limit"):
        table.add_column(name, justify="left" if name in ("configuration", "state", "limit") else "right")
    for trial in run.trials:
        table.add_row(*(Text(numbers.one_line(item)) for item in _row(run, trial)))
    return table


def _row(run: TuneRun, trial: Trial) -> tuple[str, ...]:
    best = trial.best(run.max_p99_us)
    level: TrialLevel | None = best or min(trial.levels, key=lambda item: item.p99_us.value, default=None)
    head = (str(trial.number), str(trial.settings), trial.state if best or trial.state != "complete" else "over")
    if level is None:
        return (*head, *("–" for _ in range(6)), trial.reason[:60])
    return (
        *head,
        str(level.concurrency),
        tuned.rate(level.infer_per_s),
        numbers.time_us(level.p50_us.value),
        tuned.time(level.p99_us),
        f"{level.mean_batch:.1f}" if level.mean_batch is not None else "–",
        numbers.percent(level.cpu_utilisation, 0),
        level.limit,
    )


def _finalists(run: TuneRun) -> Table:
    table = Table(title="The best, measured again in turns", title_justify="left", box=None, pad_edge=False)
    for name in ("#", "configuration", "load", "infer/s, median", "p99, median", "rounds", ""):
        table.add_column(name, justify="left" if name in ("configuration", "") else "right")
    for place, item in enumerate(run.finalists, 1):
        rate, p99 = tuned.median(item)
        word = ", ".join([*(["chosen"] if item.chosen else []), *(["present"] if item.present else [])])
        cells = (str(item.settings), str(item.concurrency), numbers.rate(rate), numbers.time_us(p99))
        table.add_row(str(place), *cells, str(len(item.infer_per_s)), word)
    return table
