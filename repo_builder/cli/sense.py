"""``repo-builder sense``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repo_builder.cli.durations import Seconds

if TYPE_CHECKING:
    from repo_builder.core.recipe import Precision
    from repo_builder.results.sensing import Sensed


@click.command("sense")
@click.argument("recipe")
@click.option(
    "--budget",
    type=Seconds(),
    default="10m",
    show_default=True,
    help="How long may be measured, as in 90s or 10m; layers that take most time come first.",
)
@click.option(
    "--also",
    type=click.Choice(["fp8", "fp16"]),
    multiple=True,
    help="Measure what this precision costs in accuracy, too, where the target does not have it: its time is then "
    "unknown. Repeatable.",
)
@click.option(
    "--report",
    "--output",
    "report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write one self-contained page with charts.",
)
@click.option(
    "--target",
    type=click.Choice(["auto", "onnxruntime", "tensorrt"]),
    help="What to compile for; auto takes TensorRT where a GPU and the library are.  [default: the recipe's]",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build"),
    show_default=True,
    help="Folder of intermediate artifacts; what is measured is kept in WORK/NAME/search/measured.json.",
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights instead of the recipe's.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder of the data set's files, instead of a download."
)
@click.option("--set", "settings", multiple=True, metavar="KEY.PATH=VALUE", help="Change one recipe value; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    recipe: str,
    budget: float,
    also: tuple[Precision, ...],
    report: Path | None,
    target: str | None,
    work: Path,
    checkpoint: Path | None,
    data_dir: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure what each layer of RECIPE gains and costs in a lower precision.

    Each layer alone is made int8 (and fp8 and fp16 where the target has them), all others stay fp32: how much time the
    network saves, in turns with all in fp32, and what it loses, in signal to noise and accuracy of the outputs on
    validation samples, each with its 95 % interval, what pays best first. How long that takes is told before it starts.
    Run again, it goes on where it was stopped. Layers that a rule calls by their full name stay as they are.

    \b
    repo-builder sense vgg
    repo-builder sense my_model.toml --budget 2m --report sense.html
    repo-builder sense vgg --also fp8
    repo-builder sense vgg --json
    """
    from repo_builder import recipes
    from repo_builder.core import environment, files
    from repo_builder.flows import search
    from repo_builder.flows.build import BuildOptions
    from repo_builder.report import precision_page

    if report is not None:
        files.require_writable(report.parent)
    options = BuildOptions(
        recipe=recipes.load(recipe, settings),
        work=work,
        repository=work,
        target=target,
        checkpoint=checkpoint,
        data_dir=data_dir,
    )
    found = search.sense(options, budget_s=budget, also=also)
    if report is not None:
        files.write_text(report, precision_page.sense_page(found, environment.describe()))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    _show(found, report)


def _show(found: Sensed, report: Path | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from repo_builder.core import tables
    from repo_builder.core.progress import stdout_console
    from repo_builder.report import choice

    table = Table(box=None, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("precision")
    for heading in ("saves µs", "95 % interval", "of fp32", "outputs keep dB", "points lost", "points, 95 %"):
        table.add_column(heading, justify="right")
    for row in found.rows:
        drop = ("", "") if row.drop is None else (f"{row.drop.points:.2f}", f"{row.drop.low:.2f} – {row.drop.high:.2f}")
        times, share = ("", ""), row.refused or row.untimed or "not timed"
        if row.saved_us is not None:
            saved, low, high = row.saved_us
            times, share = (
                (f"{saved:.1f}", f"{low:.1f} – {high:.1f}"),
                f"{100 * saved / row.speed[0].reference_us:.1f} %",
            )
        kept = "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
        table.add_row(Text(row.name), row.precision, *times, Text(share), kept, *drop)
    console = stdout_console()
    tables.show(table, console, keys=2)
    size = next((row.speed[0].batch_size for row in found.rows if row.speed), 1)
    told = f"times are {found.clock} at batch {size}; accuracy is of {found.samples} validation samples"
    console.print(f"{told}; measured in {found.seconds:.0f} s, {found.fresh} measurements now", markup=False)
    whole = found.everything
    kept = "" if whole.sqnr_db is None else f"; {whole.sqnr_db:.1f} dB"
    said = f"all of them together in {whole.precision}: {choice.speeds(whole.speed) or whole.refused}{kept}"
    console.print(said, markup=False, soft_wrap=True)
    if found.unmeasured:
        console.print(f"the budget left out {', '.join(found.unmeasured)}", markup=False, soft_wrap=True)
    if report is not None:
        console.print(f"page: {report}", markup=False, soft_wrap=True)
