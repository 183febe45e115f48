"""``repo-builder build``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from repo_builder.cli.durations import Seconds

if TYPE_CHECKING:
    from repo_builder.core.recipe import Recipe, SearchSpec
    from repo_builder.core.records import AccuracyRecord, FinetuneRecord, LayerRecord
    from repo_builder.flows.build import BuildResult


F = TypeVar("F", bound=Callable[..., Any])

# What `build` and `compile` both take, in the order of their help.
_SHARED = (
    click.option(
        "--output", "repository", type=click.Path(path_type=Path), default=Path("model_repository"), show_default=True,
        help="Model repository to write to.",
    ),
    click.option(
        "--target", type=click.Choice(["auto", "onnxruntime", "tensorrt"]),
        help="What to compile for; auto takes TensorRT where a GPU and the library are.  [default: the recipe's]",
    ),
    click.option(
        "--data-dir", type=click.Path(path_type=Path), help="Folder of the data set's files, instead of a download."
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY.PATH=VALUE", help="Change one recipe value; repeatable."
    ),
    click.option("--version", default="replace", show_default=True, help="replace, next, or a version's number."),
    click.option("--keep-versions", type=click.IntRange(1), help="Versions to keep.  [default: the recipe's]"),
    click.option("--allow-precision-mismatch", is_flag=True, help="Accept layers in another precision than asked."),
    click.option(
        "--accept-departure", is_flag=True,
        help="Place a model whose outputs depart from those of the form before by more than the recipe accepts.",
    ),
    click.option("--force", is_flag=True, help="Run stages that are up to date again."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)  # fmt: skip


def shared_options(function: F) -> F:
    """Add the options that ``build`` and ``compile`` share."""
    for option in reversed(_SHARED):
        function = option(function)
    return function


@click.command("build")
@click.argument("recipe")
@shared_options
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build"), show_default=True,
    help="Folder of intermediate artifacts.",
)  # fmt: skip
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights instead of the recipe's.")
@click.option(
    "--search",
    is_flag=True,
    help="Choose each layer's precision and calibrator by time and accuracy measured here.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Most points of accuracy that a search may lose on the validation split. [default: [search] max_drop, 0.3]",
)
@click.option(
    "--budget",
    type=Seconds(),
    help="How long a search may measure, as in 90s or 10m. [default: [search] budget_s, 10m]",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of a search. [default: the recipe's]")
@click.option(
    "--timings",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Take a search's measurements from an earlier one's WORK/NAME/search/measured.json.",
)
def command(
    recipe: str,
    repository: Path,
    work: Path,
    target: str | None,
    checkpoint: Path | None,
    data_dir: Path | None,
    settings: tuple[str, ...],
    version: str,
    keep_versions: int | None,
    allow_precision_mismatch: bool,
    accept_departure: bool,
    force: bool,
    as_json: bool,
    search: bool,
    max_drop: float | None,
    budget: float | None,
    seed: int | None,
    timings: Path | None,
) -> None:
    """Build a model repository from RECIPE, a built-in's name or a TOML file.

    The model is loaded, every layer gets the precision that the last matching rule gives it, ranges are calibrated on
    training samples, the ONNX is exported and checked, compiled for the target and placed in the model repository
    with its config.pbtxt. Accuracy of every form is measured on the same held-out samples. Steps of [pipeline] are put
    around the network, in one graph with it or as an ensemble (docs/pipelines.md). It ends with a verdict: which
    precision to serve here, what was measured beside it, and what would change that.

    With --search, precisions are chosen first: moves are timed in turns with the best so far and kept where they pay by
    2 % and keep the limit on the validation split; the test split is scored once, at the end. What was measured is
    kept, so that a search that is killed goes on, and --timings with the same seed repeats one. The result is written
    as plain rules, in WORK/NAME/searched.toml.

    \b
    repo-builder build vgg
    repo-builder build vgg --set quantize.layers.0.input.calibrator=entropy
    repo-builder build vgg --search --max-drop 0.3 --budget 10m
    repo-builder build my_model.toml --checkpoint best.safetensors --version next --keep-versions 2
    """
    from repo_builder import recipes
    from repo_builder.flows.build import BuildOptions, build

    found = recipes.load(recipe, settings)
    options = BuildOptions(
        recipe=found,
        work=work,
        repository=repository,
        target=target,
        checkpoint=checkpoint,
        data_dir=data_dir,
        force=force,
        version=parse_version(version),
        keep_versions=keep_versions,
        allow_precision_mismatch=allow_precision_mismatch,
        accept_departure=accept_departure,
        search=_limits(found, search, max_drop=max_drop, budget_s=budget, seed=seed, timings=timings),
        timings=timings,
    )
    show(build(options), as_json=as_json)


def _limits(recipe: Recipe, asked: bool, *, timings: Path | None, **given: float | None) -> SearchSpec | None:
    """Return the limits of a search, what is given over the recipe's; None where none is asked for.

    Raises:
        click.UsageError: An option of a search is given, and there is none.
    """
    from repo_builder.core.recipe.search import limits

    if not asked and recipe.search is None and (timings or any(item is not None for item in given.values())):
        raise click.UsageError("--max-drop, --budget, --seed and --timings are of a search: add --search")
    return limits(recipe.search, asked, **given)


def parse_version(text: str) -> int | Literal["replace", "next"]:
    """Return ``--version`` as ``layout.place`` takes it.

    Raises:
        click.BadParameter: It is neither a word that is known nor a version's number.
    """
    from repo_builder.core.bounds import shown

    if text == "next":
        return "next"
    if text == "replace":
        return "replace"
    if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0:  # Triton takes 32 bits
        return int(text)
    raise click.BadParameter(f"{shown(text)} is neither replace, next nor a number above 0", param_hint="--version")


def show(result: BuildResult, *, as_json: bool) -> None:
    """Print a build's layer table, accuracies and repository on stdout."""
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    from repo_builder.core import tables
    from repo_builder.core.artifacts import SEARCH_PAGE
    from repo_builder.core.progress import stdout_console
    from repo_builder.report import choice

    console = stdout_console()
    if result.engine.layers:
        tables.show(_layer_table(result.engine.layers), console)
    if result.exported.details.exporter:
        console.print(f"exported by {result.exported.details.exporter}", markup=False, soft_wrap=True)
    for item in result.exported.details.repairs:
        console.print(str(item), markup=False, soft_wrap=True)
    tables.show(_accuracy_table(result.accuracy), console, keys=2)
    tuned = result.exported.details.finetuned
    if tuned is not None:
        console.print(_in_words(tuned, result.engine.accuracy), markup=False, soft_wrap=True)
    for line in choice.verdict(result.engine):
        console.print(line, markup=False, soft_wrap=True)
    if result.searched is not None:
        page = result.searched.parent / SEARCH_PAGE
        console.print(f"searched recipe: {result.searched}; what was tried: {page}", markup=False, soft_wrap=True)
    console.print(f"model repository: {result.model_folder}", markup=False, soft_wrap=True)


def _in_words(tuned: FinetuneRecord, accuracy: tuple[AccuracyRecord, ...]) -> str:
    """Return a sentence on what fine-tuning changed: the compiled model against the calibrated one."""
    how = f"fine-tuning ({tuned.backend}, for {tuned.placement}, kept epoch {tuned.best_epoch} of {tuned.epochs})"
    last = accuracy[-1] if accuracy else None
    if last is not None and last.top1 is not None and tuned.before.top1 is not None:
        return f"{how}: top-1 {tuned.before.top1:.4f} as calibrated, {last.top1:.4f} fine-tuned"
    after = next((item.sqnr_db for item in accuracy if item.form == "fine-tuned"), None)
    if after is None or tuned.before.sqnr_db is None:
        return how
    return f"{how}: {tuned.before.sqnr_db:.1f} dB to fp32 as calibrated, {after:.1f} dB fine-tuned"


def _layer_table(layers: tuple[LayerRecord, ...]) -> Any:  # noqa: ANN401 - rich is imported late
    from rich.table import Table

    table = Table(title="Layers", title_justify="left", box=None, pad_edge=False)
    for heading in ("layer", "type", "asked", "got", "rule", "calibrator"):
        table.add_column(heading, overflow="fold")
    for heading in ("input amax", "weight amax", "SQNR dB"):
        table.add_column(heading, justify="right")
    for item in layers:
        numbers = [_number(item.input_amax, ".4g"), _number(item.weight_amax, ".4g"), _number(item.sqnr_db, ".1f")]
        rule = item.rule or "none: stays fp32"
        table.add_row(item.name, item.type, item.asked, item.form, rule, item.calibration, *numbers)
    return table


def _accuracy_table(records: tuple[AccuracyRecord, ...]) -> Any:  # noqa: ANN401 - rich is imported late
    from rich.table import Table
    from rich.text import Text

    from repo_builder.core.records import OutputRecord

    samples = records[0].samples if records else 0
    title = f"Accuracy on the same {samples} held-out samples"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("form")
    table.add_column("output")
    for heading in (
        "top-1", "95 % interval", "same class or value", "largest difference", "SQNR dB", "cosine", "relative error", ""
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for item in records:
        interval = "" if item.low is None or item.high is None else f"{item.low:.4f} – {item.high:.4f}"
        top1 = {item.output: (_number(item.top1, ".4f"), interval)}
        for place, output in enumerate(item.outputs or (OutputRecord(name=item.output),)):
            table.add_row(
                item.form if place == 0 else "",
                Text(output.name),
                *top1.get(output.name, ("", "")),
                "" if output.agreement is None else f"{100 * output.agreement:.2f} %",
                _number(output.max_abs_diff, ".3g"),
                _number(output.sqnr_db, ".1f"),
                _number(output.cosine, ".4f"),
                _number(output.relative_error, ".3g"),
                "departs" if output.departs else "",
            )
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
