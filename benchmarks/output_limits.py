"""What outputs keep of the form before, of ordinary and of broken builds: where the limits of judge/limits.py are from.

    .venv/bin/python benchmarks/output_limits.py --out benchmarks/results/output_limits.json [RECIPE ...]
    .venv/bin/python benchmarks/output_limits.py --out ... --kinds fp8 "broken fp8" -- vgg examples/zoo/cls.toml

Every recipe is built, with --accept-departure and every layer kept as its rule says, in its own precisions under the
four calibrators, in fp8 (computed in float on values rounded to E4M3) under the three that it has, in fp16 and in fp32;
then int8 and fp8 are broken by ranges that are wrong: inputs clipped at their median and at nine tenths, weights at
their median. Rows of other recipes and kinds stay in the file. The zoo's recipes want examples/zoo/make_data.py. A line
tells for each step the lowest signal to noise of any output (dB), what top-1 became, how large the error is beside
what varies between samples, and whether the build would have been refused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repo_builder import recipes
from repo_builder.core.recipe import Recipe

RECIPES = ("vgg", "jsc", "jsc-s", "jsc-tiny", "jsc-toy")
# kind → name → settings of every rule that asks for int8
VARIANTS: dict[str, dict[str, dict[str, str]]] = {
    "int8": {
        "max": {"input": '{ calibrator = "max" }'},
        "percentile 99.99": {"input": '{ calibrator = "percentile", percentile = 99.99 }'},
        "entropy": {"input": '{ calibrator = "entropy" }'},
        "mse": {"input": '{ calibrator = "mse" }'},
    },
    "fp8": {
        "max": {"precision": "fp8", "input": '{ calibrator = "max" }'},
        "percentile 99.99": {"precision": "fp8", "input": '{ calibrator = "percentile", percentile = 99.99 }'},
        "mse": {"precision": "fp8", "input": '{ calibrator = "mse" }'},
    },
    "fp16": {"fp16": {"precision": "fp16"}},
    "fp32": {"fp32": {"precision": "fp32"}},
    "broken": {
        "inputs at 50 %": {"input": '{ calibrator = "percentile", percentile = 50.0 }'},
        "inputs at 90 %": {"input": '{ calibrator = "percentile", percentile = 90.0 }'},
        "weights at 50 %": {"weight": '{ calibrator = "percentile", percentile = 50.0 }'},
    },
    "broken fp8": {
        "inputs at 50 %": {"precision": "fp8", "input": '{ calibrator = "percentile", percentile = 50.0 }'},
        "inputs at 90 %": {"precision": "fp8", "input": '{ calibrator = "percentile", percentile = 90.0 }'},
        "weights at 50 %": {"precision": "fp8", "weight": '{ calibrator = "percentile", percentile = 50.0 }'},
    },
}


def main() -> None:
    """Build, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="built-ins, or TOML files")
    parser.add_argument("--out", type=Path, help="file of the figures")
    parser.add_argument("--kinds", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="build these alone")
    options = parser.parse_args()
    names = [Path(recipe).stem for recipe in options.recipes]
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out and options.out.is_file() else []
    rows = [row for row in known if row["recipe"] not in names or row["kind"] not in options.kinds]
    for recipe in options.recipes:
        for kind in options.kinds:
            for name, settings in VARIANTS[kind].items():
                row = {"recipe": Path(recipe).stem, "kind": kind, "variant": name, **measured(recipe, settings)}
                rows.append(row)
                print(in_words(row), flush=True)
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for kind in VARIANTS:
        found = [row["changed_db"] for row in rows if row["kind"] == kind and row["changed_db"] is not None]
        if found:
            print(f"{kind}: {min(found):.1f} to {max(found):.1f} dB over {len(found)} builds")


def measured(recipe: str, settings: dict[str, str]) -> dict[str, Any]:
    """Build a recipe and return the figures of its steps; ``error`` where it cannot be built like that."""
    whole = recipes.load(recipe)
    fixed = ["quantize.keep=all", "compile.onnxruntime.fp8=simulate"]
    fixed += [f"{key}={Path(value).absolute()}" for key, value in _files(whole)]
    if settings.get("precision", "int8") != "int8" and whole.quantize.repair.asked:
        fixed.append("quantize.repair={}")  # repairs are of int8 alone
    chosen = [place for place, rule in enumerate(whole.quantize.layers) if rule.precision == "int8"]
    changes = [f"quantize.layers.{place}.{key}={value}" for place in chosen for key, value in settings.items()] + fixed
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(sys.executable).with_name("repo-builder"))
        named = str(Path(recipe).absolute()) if recipe.endswith(".toml") else recipe
        sets = [part for change in changes for part in ("--set", change)]
        command = [program, "build", named, "--target", "onnxruntime", "--accept-departure", "--json", *sets]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"changed_db": None, "same_db": None, "error": done.stderr.strip().splitlines()[-1][:200]}
    built = json.loads(done.stdout)
    forms = built["accuracy"]
    steps = {item["form"]: _lowest(item) for item in forms if item["outputs"]}
    errors = [output["relative_error"] for item in forms for output in item["outputs"]]
    return {
        "changed_db": min((value for form, value in steps.items() if form != "exported"), default=None),
        "exported_db": steps.get("exported"),
        "steps": steps,
        "relative_error": max((value for value in errors if value is not None), default=None),
        "top1": [item["top1"] for item in forms],
        "departs": built["departures"],
    }


def _files(whole: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the keys that name files, which a recipe says from this folder."""
    named = {"model.source": whole.model.source, "model.checkpoint": whole.model.checkpoint}
    for key, value in (named | {"data.source": whole.data.source}).items():
        if value and Path(value).is_file():
            yield key, value


def _lowest(form: dict[str, Any]) -> float | None:
    return min((item["sqnr_db"] for item in form["outputs"] if item["sqnr_db"] is not None), default=None)


def in_words(row: dict[str, Any]) -> str:
    """Return a row as a line of the table."""
    if "error" in row:
        return f"{row['recipe']:10} {row['kind']:7} {row['variant']:22} not built: {row['error']}"
    steps = "  ".join(f"{form} {value:.1f}" for form, value in row["steps"].items())
    first, last = row["top1"][0], row["top1"][-1]
    score = "" if first is None else f"  top-1 {first:.3f} → {last:.3f}"
    held = "  refused" if row["departs"] else ""
    error = f"  error {row['relative_error']:.3g}"
    return f"{row['recipe']:10} {row['kind']:7} {row['variant']:22} {steps}{score}{error}{held}"


if __name__ == "__main__":
    main()
