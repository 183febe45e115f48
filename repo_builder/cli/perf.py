"""``repo-builder perf``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("perf")
@click.argument("model")
@click.option("--url", help="host:port of the server. [default: localhost:8001 for gRPC, :8000 for HTTP]")
@click.option(
    "--protocol", type=click.Choice(["grpc", "http", "grpc-stream"]), default="grpc", show_default=True,
    help="How requests travel.",
)  # fmt: skip
@click.option("--concurrency", help="Requests in flight: 4, or 1,4,16, or 1:16:x2. [default: the recipe's]")
@click.option("--batch-size", help="Samples a request: 1, or 1,8. [default: the recipe's]")
@click.option("--dataset", help="Data to send instead of the recipe's: .npz, .csv, a folder, module:function.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set, instead of a download.")
@click.option("--recipe", help="Recipe to take data and defaults from. [default: the build's, or a built-in's]")
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build"), show_default=True,
    help="Folder of the build's artifacts.",
)  # fmt: skip
@click.option("--window-ms", type=click.IntRange(1), default=1000, show_default=True, help="Least time of a window.")
@click.option("--timeout-s", type=float, default=10.0, show_default=True, help="Deadline of every call.")
@click.option("--no-accuracy", is_flag=True, help="Latency only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: str,
    url: str | None,
    protocol: str,
    concurrency: str | None,
    batch_size: str | None,
    dataset: str | None,
    data_dir: Path | None,
    recipe: str | None,
    work: Path,
    window_ms: int,
    timeout_s: float,
    no_accuracy: bool,
    as_json: bool,
) -> None:
    r"""Measure MODEL as a Triton server serves it: accuracy first, then latency and throughput.

    \b
    repo-builder perf vgg
    repo-builder perf vgg --protocol http --concurrency 1,4,16 --batch-size 1,8
    """
    import dataclasses
    import json

    from repo_builder import measuring
    from repo_builder.measure.course import Pace
    from repo_builder.measure.transport import Endpoint
    from repo_builder.results import Level

    levels = tuple(
        Level(concurrency=line, batch_size=size)
        for size in _numbers(batch_size)
        for line in _numbers(concurrency)
        if batch_size or concurrency
    )
    options = measuring.PerfOptions(
        model=model,
        endpoint=Endpoint.parse(url, protocol),  # type: ignore[arg-type]
        recipe=recipe,
        work=work,
        dataset=dataset,
        data_dir=data_dir,
        levels=levels,
        pace=Pace(window_s=window_ms / 1000, warmup_s=window_ms / 2000),
        with_accuracy=not no_accuracy,
        timeout_s=timeout_s,
    )
    collected = measuring.Collected()
    try:
        measuring.perf(options, collected, lambda text: click.echo(text, err=True))
    finally:
        if collected.run is not None:
            run = collected.run
            if as_json:
                click.echo(json.dumps(dataclasses.asdict(run)))
            else:
                if run.accuracy:
                    click.echo(f"top-1 {run.accuracy.top1:.4f} [{run.accuracy.low:.4f}, {run.accuracy.high:.4f}]")
                for item in run.levels:
                    latency = item.latency
                    click.echo(
                        f"{item.level}  {item.infer_per_s:.0f} infer/s  "
                        + (f"p50 {latency.p50_us:.0f} us  p99 {latency.p99_us:.0f} us" if latency else "no requests")
                        + ("" if item.stable else "  unstable")
                    )


def _numbers(text: str | None) -> list[int]:
    return [int(item) for item in (text or "1").split(",")]
