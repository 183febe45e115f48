"""The stage behind compiling: network and steps → the models of a pipeline, run as they will be served, and scored."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from repo_builder.compile import CompileTarget
from repo_builder.core import files, onnx_files, pipelines, progress
from repo_builder.core.artifacts import EngineArtifact, hashes
from repo_builder.core.details import OnnxRuntimeDetails
from repo_builder.core.pipelines import PartRecord, Pipeline
from repo_builder.core.portable import make_portable
from repo_builder.core.recipe import Recipe
from repo_builder.datasets import Dataset
from repo_builder.flows.build import keys, trying
from repo_builder.flows.build.options import BuildOptions
from repo_builder.flows.build.piping import CODE, Piped
from repo_builder.pipeline import graph, here, parts
from repo_builder.pipeline.parts import Part
from repo_builder.pipeline.scored import scored
from repo_builder.repository import config

_VERSION = "1"


def run(
    piped: Piped, engine: EngineArtifact, target: CompileTarget, options: BuildOptions, raw: Dataset | None
) -> tuple[Pipeline, bool]:
    """Make the models of a pipeline, or find that they are up to date; return them and whether they were.

    Args:
        piped: What ``piping.begin`` returned.
        engine: The compiled network.
        target: What compiled it.
        options: What of it is asked for.
        raw: The data as clients send it; None where it is not on this machine.

    Raises:
        RecipeError: ``fuse = true`` is impossible, labels do not fit, or nothing can be scored.
    """
    recipe = options.recipe
    piped = piped.around(engine.inputs, engine.outputs)
    folder = options.work / recipe.name / "pipeline"
    key = files.sha256_of_json({
        "steps": piped.key,
        "table": [recipe.pipeline.fuse, list(recipe.pipeline.outputs)],
        "engine": [engine.key, engine.files],
        "batch": engine.details.max_batch_size,
        "classes": engine.classes,
        "measure": recipe.to_dict()["measure"],
        "code": keys.code_version(*CODE, "flows/build", "repository", "measure/judge"),
        "data": raw.fingerprint if raw else None,
    })  # fmt: skip
    found = None if options.force else pipelines.up_to_date(folder, key)
    if found is not None:
        progress.skipped("join steps", f"up to date  {folder}")
        return found, True
    with files.replacing_folder(folder) as fresh:
        with progress.step("join steps") as step:
            made, split = _made(piped, engine, options, key, fresh)
            kinds = " → ".join(part.kind for part in made.parts)
            step.note(kinds if made.fused else f"{kinds}, an ensemble: {made.apart}")
        if raw is not None:
            made = trying.run(made, split, piped, engine, target, raw)
        made = dataclasses.replace(made, files=hashes(fresh))
        pipelines.write(made)
    return dataclasses.replace(made, path=folder), False


def _made(
    piped: Piped, engine: EngineArtifact, options: BuildOptions, key: str, folder: Path
) -> tuple[Pipeline, tuple[Part, ...]]:
    """Write the models' folders; return the pipeline as far as it is known without samples, and its parts."""
    recipe, batch = options.recipe, engine.details.max_batch_size
    rows = -1 if batch else config.rows(engine)
    split, apart = _split(piped, engine, recipe)
    network = onnx_files.load(engine.model) if engine.target == "onnxruntime" else None
    records = tuple(_record(part, place, piped, engine, network, folder, rows) for place, part in enumerate(split, 1))
    judged = scored(piped.chain, recipe.measure, engine.classes)
    made = Pipeline(
        path=folder,
        key=key,
        name=recipe.name,
        steps=piped.key,
        apart="" if len(split) == 1 else apart,
        max_batch_size=batch,
        rows=rows,
        inputs=piped.chain.inputs,
        outputs=piped.chain.outputs,
        classes=engine.classes,
        scored=judged.name,
        ranked=judged.ranked,
        width=judged.width,
        parts=records,
        engine_sha256=engine.files[engine.model.name],
    )
    return made, split


def _split(piped: Piped, engine: EngineArtifact, recipe: Recipe) -> tuple[tuple[Part, ...], str]:
    """Return the parts, and why they are several where they are."""
    why_not = _why_not(engine)
    split = parts.split(piped.chain, fuse=recipe.pipeline.fuse, why_not=why_not)
    python = next((link for link in piped.chain.links if link.python), None)
    if recipe.pipeline.fuse is False:
        return split, "fuse is false"
    return split, why_not or f"{python} is Python"


def _why_not(engine: EngineArtifact) -> str:
    """Return why the network cannot be in one graph with steps; empty where it can."""
    if engine.target != "onnxruntime":
        return f"the target is {engine.target}, and steps run in ONNX Runtime"
    details = engine.details
    if isinstance(details, OnnxRuntimeDetails) and details.accelerator != "none":
        return f"the network has the accelerator {details.accelerator}, and steps run on the CPU"
    return graph.obstacle(onnx_files.load(engine.model))


def _record(
    part: Part, place: int, piped: Piped, engine: EngineArtifact, network: Any, folder: Path, rows: int  # noqa: ANN401
) -> PartRecord:  # fmt: skip
    """Write a part's folder as it goes into the repository, and return what is known of it."""
    runs = tuple(map(str, part.links))
    if part.bare:
        link = part.links[0]
        read = {item.name for item in part.gives}
        pairs = zip(link.yields, link.gives, strict=True)
        return PartRecord(
            kind=part.kind,
            runs=runs,
            inputs=engine.inputs,
            outputs=engine.outputs,
            takes={spec.name: wire.name for spec, wire in zip(link.binds, link.takes, strict=True)},
            gives={spec.name: wire.name for spec, wire in pairs if wire.name in read},
        )
    name = f"{place}.{part.kind}"
    version = folder / name / _VERSION
    version.mkdir(parents=True)
    outputs, gives = part.gives, {item.name: item.name for item in part.gives}
    if part.python:
        link = part.links[0]
        source = piped.folder / here.folder_of(link)
        for path in sorted(item for item in source.rglob("*") if item.is_file() and "__pycache__" not in item.parts):
            files.write_bytes(version / path.relative_to(source), path.read_bytes())
        outputs = link.gives  # a step gives all of its tensors, in its order
        gives = {item.name: item.name for item in part.gives}
    else:
        model = graph.write(part, network if part.kind == pipelines.NETWORK else None, engine.classes, rows)
        make_portable(model, ())
        onnx_files.save(model, version / "model.onnx")
    return PartRecord(
        kind=part.kind,
        folder=name,
        python=part.python,
        runs=runs,
        inputs=part.links[0].takes if part.python else part.takes,
        outputs=outputs,
        takes={item.name: item.name for item in part.takes},
        gives=gives,
        instance_count=part.links[0].spec.instance_count if part.python else 0,
    )
