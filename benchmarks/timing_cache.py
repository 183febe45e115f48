"""How much sooner a second build of the same network is there: one artifact compiled twice with one timing cache.

python benchmarks/timing_cache.py ARTIFACT RESULTS.json

ARTIFACT is a folder with model.onnx and its manifest, as ``precision_variants.py`` writes them.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

from gpu_facts import head
from placed_graph import options_for

from repo_builder.compile.tensorrt.target import TensorRTTarget
from repo_builder.core import artifacts, files
from repo_builder.core.artifacts import OnnxArtifact


def main() -> None:
    """Build twice and write both times."""
    artifact = artifacts.read(OnnxArtifact, Path(sys.argv[1]))
    seconds, cached = [], []
    with tempfile.TemporaryDirectory() as temporary:
        target = TensorRTTarget()
        options = options_for(artifact, target, Path(temporary), Path(temporary) / "cache")
        options.cache_folder.mkdir()
        spec = dataclasses.replace(options.recipe.compile.tensorrt, plan_cache=False)  # tactics alone, not whole plans
        recipe = dataclasses.replace(options.recipe, compile=dataclasses.replace(options.recipe.compile, tensorrt=spec))
        options = dataclasses.replace(options, recipe=recipe)
        for place in ("first", "second"):
            folder = Path(temporary) / place
            folder.mkdir()
            details = target.compile(artifact, folder, options=options)
            seconds.append(details.build_seconds)
            cached.append(details.cached_tactics_bytes)
    results = {
        **head(),
        "model": artifact.recipe.name,
        "precisions": sorted({item.asked for item in artifact.layers}),
        "first_build_seconds": seconds[0],
        "second_build_seconds": seconds[1],
        "cached_tactics_bytes": cached[1],
        "times_faster": round(seconds[0] / seconds[1], 2),
    }
    files.write_json(Path(sys.argv[2]), results)
    print(results)


if __name__ == "__main__":
    main()
