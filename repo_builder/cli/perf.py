"""``repo-builder perf``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repo_builder.cli.perf_asked import options
from repo_builder.cli.perf_options import with_options

if TYPE_CHECKING:
    from repo_builder.results import PerfRun


@click.command("perf")
@click.argument("model", required=False)
@with_options
def command(model: str | None, json_to: str | None, csv_to: Path | None, report_to: Path | None, **asked: Any) -> None:  # noqa: ANN401
    """Measure MODEL as a Triton server serves it: accuracy first, then latency and throughput.

    Works against any Triton. The recipe of the model's build (or of the built-in of that name) says which held-out
    samples to send; without one, inputs are made up and accuracy is left out.

    \b
    repo-builder perf vgg
    repo-builder perf vgg --protocol http --concurrency 1:64:x2 --batch-size 1,8 --csv levels.csv
    repo-builder perf vgg --max-p99-ms 20                    highest throughput with p99 under 20 ms
    repo-builder perf vgg --request-rate 100:500:100 --poisson --duration 10
    repo-builder perf vgg --explain --report vgg.html        where the time goes, as a page
    repo-builder perf vgg --json monday.json                 keep a run to compare with
    repo-builder perf vgg --baseline monday.json             exit code 1 where it got worse
    repo-builder perf bert --url gpu-7:8001 --shape "ids:128;mask:128" --shared-memory system
    """
    if model is None and json_to not in (None, "-") and not str(json_to).endswith(".json"):
        model, json_to = json_to, "-"  # "perf --json MODEL" means the flag
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.")

    from repo_builder.core import files
    from repo_builder.core.errors import CheckFailed, OutputError
    from repo_builder.flows.perf import Collected, perf

    outputs = (None if json_to in (None, "-") else Path(str(json_to)), csv_to, report_to)
    for path in (item for item in outputs if item is not None):
        if path.is_dir():
            raise OutputError("is a folder", where=str(path), hint="name a file")
        files.require_writable(path.parent)
    asked_for = options(model, **asked)
    collected = Collected()
    try:
        perf(asked_for, collected)
    except BaseException:
        try:
            _show(collected.run, json_to, csv_to, report_to)
        except OutputError as second:
            click.echo(f"also: {second}", err=True)
        raise
    _show(collected.run, json_to, csv_to, report_to)
    worse = collected.run.comparison.worse if collected.run and collected.run.comparison else ()
    if worse:
        raise CheckFailed(f"worse than the baseline: {', '.join(item.what for item in worse)}")


def _show(run: PerfRun | None, json_to: str | None, csv_to: Path | None, report_to: Path | None) -> None:
    """Print the run, then write the files that were asked for; what cannot be written does not stop the next."""
    from repo_builder.core import files
    from repo_builder.core.errors import OutputError
    from repo_builder.core.progress import stdout_console
    from repo_builder.report import csv as perf_csv
    from repo_builder.report import page, terminal
    from repo_builder.results import schema

    if run is None:
        return
    failed: BaseException | None = None
    try:
        if json_to == "-":
            click.echo(schema.dumps(run), nl=False)
        else:
            terminal.show(run, stdout_console())
    except (BrokenPipeError, SystemExit) as error:  # the second is how rich answers a closed pipe
        failed = error
    except OSError as error:
        failed = OutputError(f"cannot be written ({error.strerror})", where="stdout")
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - keeps the interpreter's last flush quiet
    outputs = {
        json_to if json_to != "-" else None: schema.dumps,
        csv_to: perf_csv.render,
        report_to: page.render,
    }
    for path, render in outputs.items():
        if path is None:
            continue
        try:
            files.write_text(Path(path), render(run))
        except OutputError as error:
            failed = failed or error
    if failed:
        raise failed
