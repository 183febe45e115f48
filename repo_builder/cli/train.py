"""``repo-builder train``."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import click


@click.command("train")
@click.argument("recipe")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Checkpoint to write.  [default: checkpoints/NAME.safetensors]",
)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder of the data set's files, instead of a download."
)
@click.option("--set", "settings", multiple=True, metavar="KEY.PATH=VALUE", help="Change one recipe value; repeatable.")
@click.option("--resume", is_flag=True, help="Go on with a training that was interrupted.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where training runs."
)
@click.option(
    "--half", is_flag=True, help="Store the weights in fp16: half the size, accuracies are those of the file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    recipe: str,
    output: Path | None,
    data_dir: Path | None,
    settings: tuple[str, ...],
    resume: bool,
    device: str,
    half: bool,
    as_json: bool,
) -> None:
    """Train a recipe's model and write a checkpoint.

    RECIPE is a built-in's name or a TOML file. The epoch that is best on the validation part is kept; the test part is
    scored once, at the end. Two runs with one seed on one machine give the same bytes. After Ctrl-C, --resume goes on
    as if nothing had happened.

    \b
    repo-builder train vgg
    repo-builder train my_model.toml --set train.epochs=50 --device cuda
    """
    from repo_builder import models, recipes
    from repo_builder.core import loading, progress
    from repo_builder.flows.build import piping

    with loading.needs("build", what="training"):
        from repo_builder.models import training
    chosen = recipes.load(recipe, settings)
    target = output or Path("checkpoints") / f"{chosen.name}.safetensors"
    with ExitStack() as opened:
        with progress.step("data") as step:
            dataset = opened.enter_context(piping.fed(chosen, data_dir))
            step.note(f"{dataset.name}: " + ", ".join(f"{len(held)} {part}" for part, held in dataset.parts.items()))
        module = models.create(chosen.model, seed=chosen.seed)
        with progress.step("train") as step:
            result = training.train(
                chosen, module, dataset, target, resume=resume, progress=progress.bar, device=device, half=half
            )
            step.wrote(target)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    parts = (
        f"{part} {result[part]['top1']:.4f} ({result[part]['samples']} samples)" for part in ("validation", "test")
    )
    click.echo(f"{chosen.name}: best epoch {result['best_epoch']} of {result['epochs']}, top-1 {', '.join(parts)}")
