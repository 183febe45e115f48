"""The models of a pipeline run on the held-out samples as clients send them, from the files that are placed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np

from repo_builder.compile import CompileTarget
from repo_builder.core import environment, files, kept, loading, progress
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.details import OnnxRuntimeDetails
from repo_builder.core.errors import MissingDependency
from repo_builder.core.pipelines import NETWORK, PartRecord, Pipeline
from repo_builder.core.samples import MOST, Batches
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.datasets import Dataset
from repo_builder.flows.build.piping import Piped
from repo_builder.measure.judge import ladder, ranked
from repo_builder.measure.judge.limits import PIPELINE, Limits
from repo_builder.pipeline import here, running
from repo_builder.pipeline.parts import Part
from repo_builder.pipeline.running import Runnable, Values

_ENGINE = "engine"
Model = Callable[[dict[str, Array]], Mapping[str, Array]]


def run(
    made: Pipeline, split: Sequence[Part], piped: Piped, engine: EngineArtifact, target: CompileTarget, raw: Dataset
) -> Pipeline:
    """Run a pipeline on the held-out samples; return it with its scores and what one sample tells of sizes.

    Its outputs are kept beside those of the compiled network behind the same steps, each run by itself.

    Args:
        made: The pipeline, its folder written.
        split: Its parts.
        piped: Its steps.
        engine: The compiled network, scored on the same samples.
        target: What compiled it.
        raw: The data as clients send it.

    Raises:
        DataError: A sample is refused by a step.
    """
    samples = raw.split("test")
    details = engine.details
    accelerator = details.accelerator if isinstance(details, OnnxRuntimeDetails) else "none"
    if accelerator != "none" and not environment.gpus():
        progress.skipped("run pipeline", f"the network's provider ({accelerator}) needs a GPU")
        return made
    with progress.step("run pipeline") as step:
        try:
            with _runnables(made, split, engine, target) as runnables:
                first = {name: values[:1] for name, values in samples.inputs.items()}
                known = [*first, *(item.name for part in split for item in part.gives)]
                one = running.run(runnables, first, known)
                names = [item.name for item in piped.chain.outputs]
                found = running.stacked(running.run(runnables, samples.inputs, names), piped.chain.outputs)
        except MissingDependency as error:
            progress.skipped("run pipeline", error.message)
            return made
        step.note(f"{len(samples)} samples")
    made = _told_by(made, split, one)
    compiled = kept.load(engine.path).get(_ENGINE)
    if compiled is None:
        return made
    forms = {engine.target: piped.steps(engine.classes).after(samples.inputs, compiled), PIPELINE: found}
    kept.save(made.path, forms)
    recipe = engine.recipe
    climbed = ladder.climb(
        {form: ranked.spread(outputs, made.ranked, made.width) for form, outputs in forms.items()},
        samples.labels if recipe.measure.task == "classification" else None,
        scored=made.scored,
        limits=Limits.of(recipe.measure, (item.exactness for item in engine.layers)),
        classes=made.classes,
    )
    return dataclasses.replace(made, accuracy=climbed.rungs[1:], data_sha256=raw.fingerprint)


@contextmanager
def _runnables(
    made: Pipeline, split: Sequence[Part], engine: EngineArtifact, target: CompileTarget
) -> Iterator[list[Runnable]]:
    """Yield a pipeline's models, ready to run: the files that are placed."""
    rows = None if made.max_batch_size else made.rows
    with ExitStack() as opened:
        found = []
        for part, record in zip(split, made.parts, strict=True):
            version = made.path / record.folder / "1"
            if part.python:
                runnable = here.python(part, version)
                found.append(runnable if made.max_batch_size else dataclasses.replace(runnable, alone=True))
            elif part.kind == NETWORK:
                file = version / "model.onnx" if record.folder else engine.model
                runner = opened.enter_context(target.runner(file, engine.details))
                found.append(_whole(part, record, partial(runner, outputs=tuple(record.gives)), rows))
            else:
                with loading.needs("onnxruntime", what="running the steps of a pipeline"):
                    from repo_builder.core.sessions import Session
                session = Session(version / "model.onnx")
                found.append(_whole(part, record, session.run, rows))
        yield found


def _whole(part: Part, record: PartRecord, model: Model, rows: int | None) -> Runnable:
    """Return a part that is a graph; the network where it is alone has its own names, the others those of the chain.

    Where Triton does not batch it (``rows`` is no None), as many samples are run together as a request holds.
    """
    given = tuple(item for item in record.outputs if item.name in record.gives)
    size = MOST if rows is None else max(1, rows)
    batches = Batches(inputs=record.inputs, outputs=given, size=size, fixed=rows is not None and rows > 0)

    def run(feed: dict[str, Array]) -> Mapping[str, Array]:
        own = {name: feed[wire] for name, wire in record.takes.items()}
        outputs = batches.run(model, own)
        return {wire: outputs[own] for own, wire in record.gives.items()}

    return Runnable(part=part, run=run)


def _told_by(made: Pipeline, split: Sequence[Part], one: Values) -> Pipeline:
    """Add files for the warm-up of Python steps, and the usual sizes of what varies: those of one sample."""
    records = []
    for record in made.parts:
        if record.python:
            folder = made.path / record.folder / "warmup"
            folder.mkdir()
            named = {item.name: f"sample{place}" for place, item in enumerate(record.inputs)}
            for item in record.inputs:
                files.write_bytes(folder / named[item.name], _raw(np.asarray(one[item.name][0]), item))
            record = dataclasses.replace(record, warmup=named)
        records.append(record)
    varying = {
        item.name for part in split for link in part.links for item in (*link.takes, *link.gives) if -1 in item.shape
    }
    usual = {name: [int(size) for size in np.shape(one[name][0])] for name in sorted(varying & set(one))}
    return dataclasses.replace(made, parts=tuple(records), usual=usual)


def _raw(sample: Array, spec: TensorSpec) -> bytes:
    """Return a sample as Triton reads it from a file: texts each behind its length."""
    if spec.dtype is not DType.STRING:
        return np.ascontiguousarray(sample).tobytes()
    items = (item if isinstance(item, bytes) else str(item).encode() for item in sample.reshape(-1))
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)
