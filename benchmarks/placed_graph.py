"""What a compile target needs of an exported artifact, for benchmarks that call targets themselves."""

from __future__ import annotations

from pathlib import Path

from repo_builder.compile import CompileOptions, CompileTarget
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.flows.build import lowering


def options_for(artifact: OnnxArtifact, target: CompileTarget, folder: Path, cache: Path) -> CompileOptions:
    """Write the artifact's graph for a target into a folder, and return the options that name it."""
    graph = folder / "placed.onnx"
    lowered = lowering.lower(artifact, target.placement(artifact.recipe), graph, None)
    return CompileOptions(
        recipe=artifact.recipe, graph=graph, layer_precisions=lowered.layer_precisions, cache_folder=cache
    )
