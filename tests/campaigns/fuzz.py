"""Fuzzing: damaged inputs of every kind through the commands that read them, each in a fork of one warm process.

An input fails where the command ends in a traceback or exit 70, dies, hangs, takes memory without bound or floods the
terminal. One failing input of each sort is kept in the folder.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import random
import shutil
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import forks
import inputs
import inputs_data
import subjects
from inputs import Case, Maker
from results import Result

import repo_builder

# kind → (what makes one, share of the budget)
KINDS: dict[str, tuple[Maker, float]] = {
    "recipe": (inputs.recipe, 1.0),
    "set": (inputs.settings, 1.0),
    "pbtxt": (inputs.pbtxt, 1.0),
    "onnx": (inputs.onnx_file, 1.5),
    "onnx_build": (inputs.onnx_build, 1.0),
    "manifest": (inputs.manifest, 1.5),
    "npz": (inputs_data.npz, 1.0),
    "csv": (inputs_data.csv, 1.0),
    "trace": (inputs_data.trace, 0.5),
    "baseline": (inputs_data.baseline, 0.5),
    "checkpoint": (inputs_data.checkpoint, 1.0),  # last: from here on forks carry torch
}
_KEPT_BYTES = 300_000
_LIGHT = tuple(
    f"repo_builder.{name}"
    for name in ("cli", "core", "flows", "repository", "datasets", "measure", "report", "compile.onnxruntime")
)


def run(folder: Path, seconds: float, seed: int, *, count: int | None = None, kinds: tuple[str, ...] = ()) -> Result:
    """Try inputs of each kind.

    Args:
        folder: Scratch.
        seconds: Budget of all kinds together.
        seed: Seed of what is tried.
        count: Inputs of each kind at the most.
        kinds: Kinds to try; all where empty.
    """
    result, rnd = Result(), random.Random(seed)
    subject = subjects.make(folder / "subject")
    chosen = {name: KINDS[name] for name in kinds or KINDS}
    total = sum(share for _, share in chosen.values())
    _warm_up()
    for name, (maker, share) in chosen.items():
        if name == "checkpoint":
            _warm_up_torch()
        begin, tried, codes = time.monotonic(), 0, Counter[str]()
        while tried < (count or 10**9) and time.monotonic() - begin < seconds * share / total:
            place = folder / "case"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            os.chdir(place)
            case = maker(subject, place, rnd)
            outcome = forks.trial(case.call, folder / "said")
            tried += 1
            codes[str(outcome.code)] += 1
            if outcome.fault:
                _keep(folder, name, outcome, case, first=not result.problems[f"{name}: {outcome.fault}"])
                result.problem(f"{name}: {outcome.fault}", outcome.text)
        os.chdir(folder)
        print(f"  {name}: {tried} inputs, exit codes {dict(sorted(codes.items()))}", flush=True)
        result.figures["inputs"] += tried
        result.figures[f"inputs_{name}"] += tried
    return result


def _warm_up() -> None:
    """Import, once, what the forks would import each."""
    for found in pkgutil.walk_packages(repo_builder.__path__, "repo_builder."):
        if found.name.startswith(_LIGHT) and not found.name.endswith("__main__"):
            with suppress(Exception):
                importlib.import_module(found.name)


def _warm_up_torch() -> None:
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    for name in ("models.checkpoints", "models.building", "models.running", "export.torch_onnx", "quantize.modelopt"):
        with suppress(Exception):
            importlib.import_module(f"repo_builder.{name}")


def _keep(folder: Path, kind: str, outcome: forks.Outcome, case: Case, *, first: bool) -> None:
    """Keep the first input of a sort of fault, with the command that failed on it."""
    if not first:
        return
    kept = folder / "failures" / kind / outcome.fault.replace("/", "_").replace(" ", "_")[:80]
    kept.mkdir(parents=True, exist_ok=True)
    facts = {"command": case.what, "code": outcome.code, "fault": outcome.fault, "text": outcome.text}
    (kept / "failure.json").write_text(json.dumps(facts, indent=2, default=str))
    for path in case.files:
        if path.is_file() and path.stat().st_size < _KEPT_BYTES:
            shutil.copy(path, kept)
