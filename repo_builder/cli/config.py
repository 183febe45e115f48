"""``repo-builder config``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click


@click.command("config")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--name", help="The model's name in Triton.  [default: the file's]")
@click.option("--backend", default="onnxruntime", show_default=True, help="Triton's backend.")
@click.option("--max-batch-size", type=int, help="Largest batch; 0 turns batching off.  [default: from the model]")
@click.option("--dims", multiple=True, metavar="TENSOR:SIZES", help="Dimensions of a tensor, as in image:3,224,224.")
@click.option("--no-dynamic-batching", is_flag=True, help="Do not put requests together into batches.")
@click.option("--preferred-batch-size", "preferred", type=int, multiple=True, help="A size to reach; repeatable.")
@click.option(
    "--max-queue-delay-us", type=int, help="How long a request may wait for others, microseconds.  [default: 100]"
)
@click.option("--instance-count", type=int, default=1, show_default=True, help="Model instances (per GPU).")
@click.option(
    "--instance-kind", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True, help="Where they run."
)
@click.option("--warmup", type=int, multiple=True, metavar="SIZE", help="A batch size to warm up; repeatable.")
@click.option("--warmup-dims", multiple=True, metavar="TENSOR:SIZES", help="Dimensions in warm-up, where they vary.")
@click.option("--response-cache", is_flag=True, help="Allow Triton to answer from its response cache.")
@click.option("--parameter", multiple=True, metavar="KEY=VALUE", help="A parameter of the backend.")
@click.option("--output", type=click.Path(path_type=Path), help="File to write.  [default: standard output]")
def command(
    model: Path,
    name: str | None,
    backend: str,
    max_batch_size: int | None,
    dims: tuple[str, ...],
    no_dynamic_batching: bool,
    preferred: tuple[int, ...],
    max_queue_delay_us: int | None,
    instance_count: int,
    instance_kind: Literal["cpu", "gpu"],
    warmup: tuple[int, ...],
    warmup_dims: tuple[str, ...],
    response_cache: bool,
    parameter: tuple[str, ...],
    output: Path | None,
) -> None:
    """Print a config.pbtxt for an ONNX MODEL.

    The model batches where the first dimension of every input and output varies and where samples give the same
    together as alone, which is tried where ONNX Runtime is installed; what was decided and why is said on stderr and
    in a comment.

    \b
    repo-builder config resnet.onnx > model_repository/resnet/config.pbtxt
    repo-builder config resnet.onnx --max-batch-size 32 --preferred-batch-size 8 --warmup 1
    """
    from repo_builder.core import files, progress
    from repo_builder.repository import config
    from repo_builder.repository.from_onnx import from_onnx

    spec = from_onnx(
        model,
        name=name,
        backend=backend,
        max_batch_size=max_batch_size,
        dims=dict(_sizes(item, "--dims") for item in dims),
        dynamic_batching=not no_dynamic_batching,
        preferred_batch_sizes=preferred,
        max_queue_delay_us=max_queue_delay_us,
        instance_count=instance_count,
        instance_kind=instance_kind,
        warmup_batch_sizes=warmup,
        warmup_shapes=dict(_sizes(item, "--warmup-dims") for item in warmup_dims),
        response_cache=response_cache,
        parameters=dict(_pair(item) for item in parameter),
    )
    text = config.render(spec)
    for note in spec.notes:
        progress.stderr_console().print(note, markup=False)
    if output is None:
        click.echo(text, nl=False)
        return
    files.write_text(output, text)
    progress.stderr_console().print(f"wrote {output}", markup=False)


def _sizes(text: str, option: str) -> tuple[str, tuple[int, ...]]:
    """Split ``image:3,224,224``; a tensor's name may hold colons."""
    tensor, _, sizes = text.rpartition(":")
    try:
        found = tuple(int(size) for size in sizes.split(",") if size.strip())
    except ValueError:
        tensor = ""
    if not tensor:
        raise click.BadParameter(f"'{text}' is not TENSOR:SIZES, as in image:3,224,224", param_hint=option)
    return tensor, found


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"'{text}' is not KEY=VALUE", param_hint="--parameter")
    return key, value
