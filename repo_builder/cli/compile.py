"""``repo-builder compile``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("compile")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--output", "repository", type=click.Path(path_type=Path), default=Path("model_repository"), show_default=True,
    help="Model repository to write to.",
)  # fmt: skip
@click.option(
    "--target", type=click.Choice(["auto", "onnxruntime", "tensorrt"]),
    help="What to compile for; auto takes TensorRT where a GPU and the library are. [default: the recipe's]",
)  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set, to score the engine.")
@click.option("--set", "settings", multiple=True, metavar="KEY.PATH=VALUE", help="Change one recipe value; repeatable.")
@click.option("--version", default="replace", show_default=True, help="replace, next, or a version's number.")
@click.option("--keep-versions", type=click.IntRange(1), help="Versions to keep. [default: the recipe's]")
@click.option("--allow-precision-mismatch", is_flag=True, help="Accept layers in another precision than asked.")
@click.option("--force", is_flag=True, help="Compile again what is up to date.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    artifact: Path,
    repository: Path,
    target: str | None,
    data_dir: Path | None,
    settings: tuple[str, ...],
    version: str,
    keep_versions: int | None,
    allow_precision_mismatch: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Compile ARTIFACT, the folder build/NAME of another machine's build, on the GPU that will serve it.

    Only build/NAME/onnx has to be copied here; torch is not needed. The plan is put into the model repository with
    its config.pbtxt, and the engine is scored where the held-out data is at hand.

    \b
    rsync -r build/vgg gpu-machine:build/
    repo-builder compile build/vgg
    repo-builder compile build/vgg --target tensorrt --set compile.tensorrt.workspace_mib=8192
    """
    from repo_builder import pipeline, recipes
    from repo_builder.cli.build import parse_version, show

    exported = pipeline.load_exported(artifact)
    options = pipeline.BuildOptions(
        recipe=recipes.change(exported.recipe, settings),
        work=artifact.absolute().parent,
        repository=repository,
        target=target,
        data_dir=data_dir,
        force=force,
        version=parse_version(version),
        keep_versions=keep_versions,
        allow_precision_mismatch=allow_precision_mismatch,
    )
    show(pipeline.compile_artifact(artifact, options), as_json=as_json)
