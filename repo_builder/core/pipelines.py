"""What a build knows of a pipeline: the models that it is, with their tensors, in ``build/NAME/pipeline``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repo_builder.core import artifacts, codec, files, foreign
from repo_builder.core.errors import RecipeError, RepositoryError
from repo_builder.core.records import AccuracyRecord
from repo_builder.core.tensors import TensorSpec

MARK = "pipeline.json"  # beside the model file of every model that belongs to a pipeline, and in the build's folder
SCHEMA = 1
NETWORK, STEPS = "network", "steps"


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """One model of a pipeline.

    Attributes:
        kind: ``network``, ``steps`` (of ONNX), or the word of a Python step.
        folder: Its folder in the artifact, as it goes into the repository; empty for the network as it was compiled.
        python: Whether it runs in Triton's Python backend.
        runs: What is in it, in order, as in ``pipeline.before[0] (decode_image)``.
        inputs: Its inputs, under its own names.
        outputs: Its outputs, under its own names.
        takes: Name of each input → tensor of the ensemble.
        gives: Name of each output that somebody takes → tensor of the ensemble.
        instance_count: Instances; 0 takes the network's.
        warmup: Input → file below ``warmup`` that holds a sample of it.
    """

    kind: str
    folder: str = ""
    python: bool = False
    runs: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    takes: dict[str, str] = field(default_factory=dict)
    gives: dict[str, str] = field(default_factory=dict)
    instance_count: int = 0
    warmup: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline that was built.

    Attributes:
        path: The folder.
        key: Hash of everything that it depends on.
        name: The name that clients call.
        steps: Hash of its steps, which what a data set is to the network depends on.
        apart: Why not all of it is one graph; empty where it is.
        max_batch_size: Largest batch; 0 where Triton does not batch it.
        rows: Samples of a request then, the first dimension of every tensor; -1 for any number.
        inputs: What clients send, without that dimension.
        outputs: What clients get.
        classes: Names of the classes.
        scored: Name of the output that is scored; empty where none is.
        ranked: Names of the outputs that hold the best classes and their scores, where those are what is scored.
        width: Number of classes that the best are of; 0 without.
        usual: Tensor → shape that it has for one sample, where a dimension of it varies.
        parts: Its models, in the order in which they run.
        engine_sha256: sha256 of the compiled network.
        files: File → sha256.
        accuracy: Its scores against the compiled network with the same steps.
        data_sha256: Hash of the held-out data that scored it; None where none did.
    """

    path: Path
    key: str
    name: str
    steps: str
    apart: str = ""
    max_batch_size: int
    rows: int = -1
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...] = ()
    scored: str = ""
    ranked: tuple[str, ...] = ()
    width: int = 0
    usual: dict[str, list[int]] = field(default_factory=dict)
    parts: tuple[PartRecord, ...]
    engine_sha256: str = ""
    files: dict[str, str] = field(default_factory=dict)
    accuracy: tuple[AccuracyRecord, ...] = ()
    data_sha256: str | None = None

    @property
    def fused(self) -> bool:
        """Whether all of it is one graph, and so one model."""
        return len(self.parts) == 1

    def configured(self, tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Return tensors as Triton's configurations have them: whole where Triton does not batch them."""
        first = () if self.max_batch_size else (self.rows,)
        return tuple(dataclasses.replace(item, shape=(*first, *item.shape)) for item in tensors)


def write(pipeline: Pipeline) -> None:
    """Write the manifest into its folder, atomically."""
    values: dict[str, Any] = codec.plain(pipeline)
    del values["path"]
    files.write_json(pipeline.path / MARK, {"schema": SCHEMA, **values})


def read(folder: Path) -> Pipeline:
    """Read a pipeline's folder.

    Raises:
        RepositoryError: There is none, or it is damaged.
    """
    path, hint = folder / MARK, "build again with --force"
    try:
        value = foreign.parsed(json.loads, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RepositoryError(f"cannot be read ({error})", where=str(path), hint="run repo-builder build") from None
    if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
        raise RepositoryError(f"is not of schema {SCHEMA}", where=str(path), hint=hint)
    body = {name: item for name, item in value.items() if name != "schema"}
    try:
        return codec.build(Pipeline, {**body, "path": str(folder)})
    except RecipeError as error:
        said = f"{error.where}: {error.message}" if error.where else error.message
        raise RepositoryError(f"is damaged ({said})", where=str(path), hint=hint) from None


def up_to_date(folder: Path, key: str) -> Pipeline | None:
    """Return the pipeline in a folder where its key is ``key`` and its files are whole, else None."""
    try:
        found = read(folder)
    except RepositoryError:
        return None
    there = {name: value for name, value in artifacts.hashes(folder).items() if name != MARK}
    return found if found.key == key and found.files == there else None


def mark(folder: Path, *, pipeline: str, key: str, models: tuple[str, ...]) -> None:
    """Write into a version's folder to which pipeline a model belongs, and which models that is."""
    files.write_json(folder / MARK, {"schema": SCHEMA, "pipeline": pipeline, "key": key, "models": list(models)})


def marked(model_folder: Path) -> dict[str, Any]:
    """Return what ``mark`` wrote into a model's folder; nothing where there is no such thing."""
    for path in sorted(model_folder.glob(f"*/{MARK}")):
        try:
            value = foreign.parsed(json.loads, path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(value, dict) and value.get("schema") == SCHEMA and isinstance(value.get("pipeline"), str):
            return value
    return {}
