"""What fp8 leaves of the built-in networks, through ONNX Runtime, beside int8: top-1 and signal to noise, no times.

    python benchmarks/fp8_accuracy.py --data-dir FOLDER --out benchmarks/results/fp8_accuracy.json

Every form is built by ``repo_builder`` for the target onnxruntime with ``compile.onnxruntime.fp8 = "simulate"`` and
scored on the same held-out samples as fp32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from repo_builder import recipes
from repo_builder.core import environment
from repo_builder.flows.build import BuildOptions, build

RECIPES = ("jsc", "vgg")
FORMS = {
    "int8, max": 'precision = "int8"',
    "fp8, max": 'precision = "fp8"',
    "fp8, percentile 99.99": 'precision = "fp8", input = { calibrator = "percentile", percentile = 99.99 }',
    "fp8, mse": 'precision = "fp8", input = { calibrator = "mse" }, weight = { calibrator = "mse" }',
    "fp8, one range a weight": 'precision = "fp8", weight = { per_channel = false }',
}


def measure(name: str, form: str, folder: Path, data: Path | None) -> dict[str, Any]:
    """Build one form and return what its ladder says."""
    settings = (
        f"quantize.layers=[{{ {FORMS[form]} }}]",
        "quantize.keep=all",
        "compile.onnxruntime.fp8=simulate",
    )
    options = BuildOptions(
        recipe=recipes.load(name, settings),
        work=folder / "build",
        repository=folder / "repository",
        target="onnxruntime",
        data_dir=data,
        accept_departure=True,
    )
    rows = {item.form: item for item in build(options).engine.accuracy}
    first, placed, last = rows["fp32"], rows["placed"], rows["onnxruntime"]
    assert first.top1 is not None  # noqa: S101 - both are classifiers
    assert last.top1 is not None  # noqa: S101
    return {
        "recipe": name,
        "form": form,
        "samples": last.samples,
        "top1_fp32": first.top1,
        "top1": last.top1,
        "top1_interval": [last.low, last.high],
        "points_lost": round(100 * (first.top1 - last.top1), 3),
        "placed_sqnr_db": placed.sqnr_db,
        "placed_agreement": placed.agreement,
        "compiled_sqnr_db": last.sqnr_db,
    }


def main() -> None:
    """Measure every form of every network and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets, instead of a download")
    parser.add_argument("--only", choices=RECIPES, action="append", help="one network alone; repeatable")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.only or RECIPES:
            for form in FORMS:
                rows.append(measure(name, form, Path(folder), asked.data_dir))
                print(json.dumps(rows[-1]), flush=True)
                found = {"environment": environment.describe(), "rows": rows}
                asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
