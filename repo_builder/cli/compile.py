"""``repo-builder compile``."""

from __future__ import annotations

from pathlib import Path

import click

from repo_builder.cli.build import parse_version, shared_options, show


@click.command("compile")
@click.argument("artifact", type=click.Path(path_type=Path))
@shared_options
@click.option(
    "--trust-code", is_flag=True,
    help="Run the module:function that the artifact's manifest names as its data, to score the engine.",
)  # fmt: skip
def command(
    artifact: Path,
    repository: Path,
    target: str | None,
    data_dir: Path | None,
    settings: tuple[str, ...],
    version: str,
    keep_versions: int | None,
    allow_precision_mismatch: bool,
    accept_departure: bool,
    force: bool,
    as_json: bool,
    trust_code: bool,
) -> None:
    """Compile ARTIFACT, the folder build/NAME of another machine's build, on the GPU that will serve it.

    Only build/NAME/onnx has to be copied here; torch is not needed. The plan is put into the model repository with
    its config.pbtxt, and the engine is scored where the held-out data is at hand.

    \b
    rsync -r build/vgg gpu-machine:build/
    repo-builder compile build/vgg
    repo-builder compile build/vgg --target tensorrt --set compile.tensorrt.workspace_mib=8192
    """
    from repo_builder import recipes
    from repo_builder.flows.build import BuildOptions, compile_artifact, load_exported

    exported = load_exported(artifact)
    options = BuildOptions(
        recipe=recipes.change(exported.recipe, settings),
        work=artifact.absolute().parent,
        repository=repository,
        target=target,
        data_dir=data_dir,
        force=force,
        version=parse_version(version),
        keep_versions=keep_versions,
        allow_precision_mismatch=allow_precision_mismatch,
        accept_departure=accept_departure,
        trust_code=trust_code,
    )
    show(compile_artifact(exported, options), as_json=as_json)
