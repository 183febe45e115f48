"""A model looked at before it is built, and after: a first recipe, its layers, what they became, a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from repo_builder.api.places import path as path_of
from repo_builder.core import files
from repo_builder.flows import init as initial
from repo_builder.flows import inspecting
from repo_builder.flows import layers as listing
from repo_builder.flows.init import Draft
from repo_builder.flows.inspecting import Inspected
from repo_builder.flows.layers import ModelLayer
from repo_builder.repository import config as configurations
from repo_builder.repository.from_onnx import from_onnx


def init(
    name: str,
    model: str | Path,
    *,
    data: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Draft:
    """Write NAME.toml, a first recipe for a model, as ``repo-builder init`` does.

    Args:
        name: The model's name in Triton.
        model: An .onnx file, or ``module:function`` that returns a torch module.
        data: Where its samples come from, as ``[data] source``.
        arguments: Keyword arguments of the function.
        force: Whether a file that is there is replaced.

    Raises:
        RepoBuilderError: The name is none, the model or the data cannot be read, or the file is there already.
    """
    made = initial.draft(name, str(model), data=data, arguments=arguments)
    initial.write(made, Path(f"{made.name}.toml"), force=force)
    return made


def layers(model: str | Path, *, data_dir: str | Path | None = None) -> tuple[ModelLayer, ...]:
    """Return the layers of a model that rules may select, as ``repo-builder layers`` lists them.

    Args:
        model: An .onnx file, a recipe's file or a built-in's name.
        data_dir: Folder of the data set's files.

    Raises:
        RepoBuilderError: The recipe or the model cannot be read.
    """
    return listing.layers(str(model), data_dir=path_of(data_dir))


def inspect(path: str | Path) -> Inspected:
    """Say what every layer of a compiled model is, as ``repo-builder inspect`` does.

    Args:
        path: A model's folder in a repository, ``build/NAME``, a .plan or an .onnx file.

    Raises:
        RepoBuilderError: There is no model, or it cannot be read or asked.
    """
    return inspecting.inspect(Path(path))


def config(
    model: str | Path,
    *,
    name: str | None = None,
    backend: str = "onnxruntime",
    max_batch_size: int | None = None,
    dims: Mapping[str, tuple[int, ...]] | None = None,
    dynamic_batching: bool = True,
    preferred: Sequence[int] = (),
    max_queue_delay_us: int | None = None,
    instance_count: int = 1,
    instance_kind: Literal["cpu", "gpu"] = "cpu",
    warmup: Sequence[int] = (),
    warmup_dims: Mapping[str, tuple[int, ...]] | None = None,
    response_cache: bool = False,
    parameters: Mapping[str, str] | None = None,
    output: str | Path | None = None,
) -> str:
    """Return a config.pbtxt for an ONNX file, as ``repo-builder config`` prints it.

    Args:
        model: The file.
        name: The model's name in Triton; None takes the file's.
        backend: Triton's backend.
        max_batch_size: Largest batch; 0 turns batching off, None decides by the model.
        dims: Tensor → dimensions in place of the file's.
        dynamic_batching: Whether requests may be put together into batches.
        preferred: Batch sizes to reach.
        max_queue_delay_us: How long a request may wait for others, microseconds; None takes the usual.
        instance_count: Model instances (per GPU).
        instance_kind: Where they run.
        warmup: Batch sizes to warm up.
        warmup_dims: Input → dimensions in warm-up, where they vary.
        response_cache: Whether Triton may answer from its response cache.
        parameters: Parameters of the backend.
        output: File to write as well; None for none.

    Raises:
        RepositoryError: The file is no ONNX model, Triton lacks a type of it, or arguments contradict it.
        OutputError: The file cannot be written.
    """
    spec = from_onnx(
        Path(model),
        name=name,
        backend=backend,
        max_batch_size=max_batch_size,
        dims=dims,
        dynamic_batching=dynamic_batching,
        preferred_batch_sizes=tuple(preferred),
        max_queue_delay_us=max_queue_delay_us,
        instance_count=instance_count,
        instance_kind=instance_kind,
        warmup_batch_sizes=tuple(warmup),
        warmup_shapes=warmup_dims,
        response_cache=response_cache,
        parameters=parameters,
    )
    text = configurations.render(spec)
    if output is not None:
        files.write_text(Path(output), text)
    return text
