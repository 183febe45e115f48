"""What a plan's build takes with each of the builder's options, and whether the plan is worse for it.

    python benchmarks/build_times.py FOLDER RESULTS.json NETWORK [--options NAME ...] [--seconds N]

FOLDER is what `gpu_networks.py export` wrote. The fp32 graph is built with FP16 under the usual profiles, each
time without tactics from before (but ``cached``, which reads what the first left), and timed as a CUDA graph at each
batch. RESULTS.json is whole after every build; ``--seconds`` begins no other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import gpu_zoo
import onnx
from gpu_facts import head

from repo_builder import recipes
from repo_builder.compile.tensorrt import graph
from repo_builder.compile.tensorrt.build import BuildRequest, build
from repo_builder.compile.tensorrt.profiles import from_recipe
from repo_builder.core import files

# name → changes of the request; the first is what a recipe without these keys does
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "cached": {"cached": True},
    "threads": {"threads": os.cpu_count()},
    "optimization_level 2": {"optimization_level": 2},
    "optimization_level 4": {"optimization_level": 4},
    "timing_iterations 4": {"timing_iterations": 4},
    "one profile": {"profiles": 1},
}


def main() -> None:
    """Build and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("network")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--seconds", type=float, default=1e9)
    asked = parser.parse_args()
    end = time.monotonic() + asked.seconds
    model = asked.folder / f"{asked.network}.onnx"
    recipe = asked.folder / f"{asked.network}-times.toml"
    recipe.write_text(gpu_zoo.recipe(f"{asked.network}-times", model, "fp16"))
    profiles = from_recipe(recipes.load(str(recipe)))
    free = dataclasses.replace(graph.read(onnx.load(model), {}), has_fp16=True)
    cache = asked.results.with_suffix(".timing")
    cache.unlink(missing_ok=True)
    found: dict[str, Any] = {**head(), "network": asked.network, "builds": {}}
    for name in asked.options:
        if time.monotonic() > end:
            return
        changes = dict(OPTIONS[name])
        own = cache if changes.pop("cached", False) or name == "as it is" else None
        chosen = profiles[-changes.pop("profiles", 0) :]
        request = BuildRequest(
            model=model, precisions=free, profiles=chosen, workspace_bytes=4 << 30, timing_cache=own, **changes
        )
        built = build(request, lambda line: None)
        plan = cache.with_suffix(".plan")
        plan.write_bytes(built.plan)
        row: dict[str, Any] = {"build_s": round(built.seconds, 1), "cached_tactics_bytes": built.cached_tactics_bytes}
        if len(chosen) == len(profiles):
            row["latency_us"] = gpu_zoo.times(plan, model.with_suffix(".npz"))
        found["builds"][name] = row
        files.write_json(asked.results, found)
        print(name, json.dumps(row)[:300], flush=True)


if __name__ == "__main__":
    main()
