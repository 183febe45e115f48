"""The models of a pipeline in a repository, exchanged as a whole.

Clients call the recipe's name. Where a pipeline is one graph, that is the only model. Else it is an ensemble, and its
models are named after it, with a letter, their place and what they do:

    digits/                    the ensemble
    digits.a1.decode_image/
    digits.a2.network/

The letter changes with every build: a new build's models are put beside those that are served, then the ensemble's
folder is exchanged in one step, then the old models are removed. Whoever reads the repository finds the old pipeline or
the new one; what a killed build left over is not used by anybody, and the next build replaces it.
"""

from __future__ import annotations

import dataclasses
import glob
import math
import shutil
from contextlib import ExitStack
from pathlib import Path

from repo_builder.core import artifacts, files, pipelines
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.errors import RepositoryError
from repo_builder.core.pipelines import NETWORK, PartRecord, Pipeline
from repo_builder.core.tensors import DType
from repo_builder.repository import config, layout, validate
from repo_builder.repository.spec import EnsembleSpec, EnsembleStep, ModelConfigSpec

LETTERS = ("a", "b")
_VERSION = "1"


def names(pipeline: Pipeline, letter: str) -> tuple[str, ...]:
    """Return the names of a pipeline's models, in the order of its parts."""
    if pipeline.fused:
        return (pipeline.name,)
    return tuple(f"{pipeline.name}.{letter}{place}.{part.kind}" for place, part in enumerate(pipeline.parts, 1))


def texts(pipeline: Pipeline, engine: EngineArtifact, letter: str) -> dict[str, str]:
    """Return the config.pbtxt of every model, by its name; that of the name that clients call is the last.

    Raises:
        RepositoryError: A name or a size makes no sense.
    """
    named = names(pipeline, letter)
    found = {
        name: config.render(_spec(pipeline, part, engine, name))
        for name, part in zip(named, pipeline.parts, strict=True)
    }
    if not pipeline.fused:
        found[pipeline.name] = config.render_ensemble(_ensemble(pipeline, engine, named))
    return found


def place(pipeline: Pipeline, engine: EngineArtifact, repository: Path) -> Path:
    """Put a pipeline into a model repository; return the folder of the model that clients call.

    Raises:
        RepositoryError: A folder of that name holds somebody else's model, or Triton would not load what came of it.
        OutputError: The repository cannot be written.
    """
    where = repository.absolute()
    target = where / pipeline.name
    with layout.exclusive(where) as staging, files.output_errors(where):
        layout.refuse_foreign(target)
        letter = _free_letter(target)
        written = texts(pipeline, engine, letter)
        parts = dict(zip(names(pipeline, letter), pipeline.parts, strict=True))
        for name in written.keys() - {pipeline.name}:
            _refuse_taken(where / name, pipeline.name)
        with ExitStack() as last:
            fresh = last.enter_context(files.replacing_folder(target, staging=staging))
            staged: dict[str, Path] = {}
            with ExitStack() as first:
                for name, text in written.items():
                    if name != pipeline.name:
                        staged[name] = first.enter_context(files.replacing_folder(where / name, staging=staging))
                    folder = staged.get(name, fresh)
                    _fill(folder, text, pipeline, parts.get(name), engine, tuple(written))
                    validate.refuse_staged(folder, name, staged)
        remove_others(where, pipeline.name, keep=set(written))
    return repository / pipeline.name


def is_placed(pipeline: Pipeline, engine: EngineArtifact, repository: Path) -> bool:
    """Whether the repository holds this very pipeline, whole."""
    mark = pipelines.marked(repository / pipeline.name)
    if mark.get("key") != pipeline.key:
        return False
    letter = _letter(mark, pipeline.name)
    try:
        for name, text in texts(pipeline, engine, letter).items():
            if (repository / name / config.CONFIG).read_text(encoding="utf-8") != text:
                return False
        for name, part in zip(names(pipeline, letter), pipeline.parts, strict=True):
            there = artifacts.hashes(repository / name)
            wanted = {f"{_VERSION}/{engine.model.name}": pipeline.engine_sha256} if not part.folder else {
                path.removeprefix(f"{part.folder}/"): value
                for path, value in pipeline.files.items()
                if path.startswith(f"{part.folder}/")
            }  # fmt: skip
            if any(there.get(path) != value for path, value in wanted.items()):
                return False
    except OSError:
        return False
    return True


def remove_others(repository: Path, name: str, *, keep: set[str]) -> None:
    """Remove the models that belong to a pipeline and are not its any more; nobody else's folder is touched."""
    for folder in sorted(repository.glob(f"{glob.escape(name)}.[ab][0-9]*.*")):
        if folder.name not in keep and not folder.is_symlink() and pipelines.marked(folder).get("pipeline") == name:
            shutil.rmtree(folder, ignore_errors=True)


def _spec(pipeline: Pipeline, part: PartRecord, engine: EngineArtifact, name: str) -> ModelConfigSpec:
    """Return the configuration of one model."""
    runs = f"Part of the pipeline '{pipeline.name}': {', '.join(part.runs)}."
    if part.kind != NETWORK:
        varying = _usual(pipeline, part)
        known = set(part.warmup) == {item.name for item in part.inputs} and abs(pipeline.rows) == 1  # one sample's file
        ready = config.warmup_sizes(engine) and (known if part.python else all(varying.values()))
        return ModelConfigSpec(
            name=name,
            backend="python" if part.python else "onnxruntime",
            max_batch_size=pipeline.max_batch_size,
            inputs=pipeline.configured(part.inputs),
            outputs=pipeline.configured(part.outputs),
            instance_count=part.instance_count or engine.recipe.repository.instance_count,
            warmup_batch_sizes=(1,) if ready else (),
            warmup_shapes=varying if ready else {},
            warmup_files=part.warmup,
            notes=(f"Written by repo-builder, and anew by every build. {runs}",),
        )
    spec = config.from_engine(engine)
    own = dict(spec.parameters) if pipeline.fused else {
        key: value for key, value in spec.parameters.items() if not key.startswith(config.IDENTITY)
    }  # fmt: skip
    if pipeline.fused:
        own |= _identity(pipeline, engine)
    spec = dataclasses.replace(spec, name=name, parameters=own, labels=None, notes=(*spec.notes, runs), keep_versions=1)
    if not part.folder:
        return spec
    varying = _usual(pipeline, part)
    return dataclasses.replace(
        spec,
        inputs=pipeline.configured(part.inputs),
        outputs=pipeline.configured(part.outputs),
        labels=_labelled(pipeline) if pipeline.fused else None,
        warmup_shapes=varying,
        warmup_batch_sizes=spec.warmup_batch_sizes if all(varying.values()) else (),
    )


def _usual(pipeline: Pipeline, part: PartRecord) -> dict[str, tuple[int, ...]]:
    """Return the usual shape of each input of a model that varies; nothing for one of which none is known."""
    found = {}
    for item, whole in zip(part.inputs, pipeline.configured(part.inputs), strict=True):
        if -1 in whole.shape:
            inner = tuple(pipeline.usual.get(item.name, ())) if -1 in item.shape else item.shape
            known = bool(inner) or -1 not in item.shape
            found[item.name] = (*whole.shape[: len(whole.shape) - len(item.shape)], *inner) if known else ()
            found[item.name] = tuple(max(1, size) for size in found[item.name])
    return found


def _ensemble(pipeline: Pipeline, engine: EngineArtifact, named: tuple[str, ...]) -> EnsembleSpec:
    return EnsembleSpec(
        name=pipeline.name,
        max_batch_size=pipeline.max_batch_size,
        inputs=pipeline.configured(pipeline.inputs),
        outputs=pipeline.configured(pipeline.outputs),
        labels=_labelled(pipeline),
        steps=tuple(
            EnsembleStep(model=name, takes=part.takes, gives=part.gives)
            for name, part in zip(named, pipeline.parts, strict=True)
        ),
        parameters=_identity(pipeline, engine),
        notes=(
            f"Written by repo-builder from the recipe '{pipeline.name}', and anew by every build of it.",
            f"An ensemble: {pipeline.apart}.",
        ),
    )


def _identity(pipeline: Pipeline, engine: EngineArtifact) -> dict[str, str]:
    return {
        f"{config.IDENTITY}engine_sha256": pipeline.engine_sha256,
        f"{config.IDENTITY}build_key": pipeline.key,
        f"{config.IDENTITY}recipe": engine.recipe.name,
    }


def _labelled(pipeline: Pipeline) -> str | None:
    """Return the first output of one floating-point number a class."""
    floats = (DType.FP32, DType.FP16, DType.FP64)
    fitting = (
        item.name
        for item in pipeline.outputs
        if item.dtype in floats and -1 not in item.shape and math.prod(item.shape) == len(pipeline.classes)
    )
    several = not pipeline.max_batch_size and pipeline.rows > 1  # Triton reads all of a tensor as one sample's classes
    return next(fitting, None) if pipeline.classes and not several else None


def _fill(
    folder: Path,
    text: str,
    pipeline: Pipeline,
    part: PartRecord | None,
    engine: EngineArtifact,
    models: tuple[str, ...],
) -> None:
    """Write one model's folder; that of the ensemble holds no model of its own."""
    version = folder / _VERSION
    if part is not None and part.folder:
        shutil.copytree(pipeline.path / part.folder, folder, dirs_exist_ok=True)
    elif part is not None:
        layout.write_version(engine, version)
    version.mkdir(exist_ok=True)
    labelled = _labelled(pipeline) if part is None or pipeline.fused else None
    if labelled:
        layout.refuse_broken_lines(pipeline.classes)
        files.write_text(folder / config.LABELS, "".join(f"{name}\n" for name in pipeline.classes))
    pipelines.mark(version, pipeline=pipeline.name, key=pipeline.key, models=models)
    files.write_text(folder / config.CONFIG, text)


def _letter(mark: dict[str, object], name: str) -> str:
    """Return the letter of the models of a pipeline that is placed; empty where it has none."""
    models = mark.get("models")
    listed = models if isinstance(models, list) else []
    return next((str(item)[len(name) + 1] for item in listed if len(str(item)) > len(name) + 1), "")


def _free_letter(target: Path) -> str:
    taken = _letter(pipelines.marked(target), target.name)
    return LETTERS[1] if taken == LETTERS[0] else LETTERS[0]


def _refuse_taken(folder: Path, pipeline: str) -> None:
    """Refuse to replace a folder that is not of this pipeline."""
    there = folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir())))
    if there and pipelines.marked(folder).get("pipeline") != pipeline:
        raise RepositoryError(
            f"is in the way: a model of the pipeline '{pipeline}' gets that name",
            where=str(folder),
            hint="move it away, give the recipe another name, or choose another repository",
        )
