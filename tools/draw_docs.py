"""Draw the pictures of docs/quantization.md from real runs: ``python tools/draw_docs.py``, half a minute.

The vgg recipe is built with several sets of rules in a folder of its own; every number in a picture is read from those
builds, or from the activations of the exported network on the calibration samples.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from markupsafe import escape

import repo_builder as rb
from repo_builder import datasets
from repo_builder.compile.onnxruntime.became import became
from repo_builder.core.tensors import Array
from repo_builder.quantize.calibrators import Calibrator
from repo_builder.report.svg import WIDTH, Axis, Line, bar_chart, line_chart

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
LAYER = "feature_layers.10"
CALIBRATORS = (("max", None), ("percentile", 99.99), ("percentile", 99.9), ("mse", None), ("entropy", None))
INT8 = {"precision": "int8"}
# What is asked → the rules that ask it.
RULES: dict[str, list[dict[str, str]]] = {
    "every layer": [{"type": "*", **INT8}],
    "by type: Conv2d": [{"type": "Conv2d", **INT8}],
    "by type: Linear": [{"type": "Linear", **INT8}],
    "by name: feature_layers.0": [{"name": "feature_layers.0", **INT8}],
    "by name: classifier.*": [{"name": "classifier.*", **INT8}],
    "mixed: all but the first": [{"type": "*", **INT8}, {"name": "feature_layers.0", "precision": "fp32"}],
}
_LIGHT = ("#1f6feb", "#c2410c", "#1a7f37", "#8250df", "#b0307c", "#0a7ea4", "#8a6d00", "#57606a")
_DARK = ("#58a6ff", "#ff9d5c", "#56d364", "#bc8cff", "#ff7bbf", "#4fd1e5", "#e3c341", "#9aa5b1")


def style() -> str:
    """Return the colours of a picture that stands alone, by day and by night."""

    def scheme(colours: tuple[str, ...], ink: str, soft: str, grid: str) -> str:
        lines = "".join(f".c{place}{{stroke:{item}}}.f{place}{{fill:{item}}}" for place, item in enumerate(colours))
        return f"text{{fill:{ink}}}text.tick,text.note{{fill:{soft}}}.grid{{stroke:{grid}}}{lines}"

    common = (
        "text{font:12.5px system-ui,sans-serif}text.tick,text.note{font-size:11.5px}.line{fill:none;stroke-width:2}"
    )
    light = scheme(_LIGHT, "#1b1f24", "#57606a", "#d0d7de")
    dark = scheme(_DARK, "#e6eaef", "#9aa5b1", "#3a434d")
    return f"<style>{common}{light}@media(prefers-color-scheme:dark){{{dark}}}</style>"


def write(name: str, chart: str, legend: list[tuple[str, int, str]]) -> None:
    """Write a chart as a picture, with its legend below: name, colour, dash."""
    svg = chart.partition('<ul class="legend">')[0]
    height = int(re.search(r'viewBox="0 0 \d+ (\d+)"', svg)[1])  # type: ignore[index]
    rows = "".join(
        f'<line class="line c{colour}" x1="74" x2="102" y1="{height + 8 + 18 * place}" y2="{height + 8 + 18 * place}"'
        f'{f""" stroke-dasharray="{dash}" """ if dash else ""}/>'
        f'<text x="110" y="{height + 12 + 18 * place}">{escape(text)}</text>'
        for place, (text, colour, dash) in enumerate(legend)
    )
    whole = height + 18 * len(legend) + (8 if legend else 0)
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {WIDTH} {whole}">'
    body = re.sub(r"<svg[^>]*>", lambda _: opened + style(), svg, count=1).removesuffix("</svg>")
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / name).write_text(f"{body}{rows}</svg>\n", encoding="utf-8")


def activations(model: Path, tensor_of: str, samples: Array) -> Array:
    """Return absolute values of the first input of a layer on samples."""
    graph = onnx.load(model)
    node = next(item for item in graph.graph.node if item.name == tensor_of)
    graph.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Array = session.run([node.input[0]], {session.get_inputs()[0].name: samples})[0]
    return np.abs(found)


def histogram(values: Array) -> None:
    """Draw what calibrators choose of one tensor's values."""
    counts, edges = np.histogram(values, 120, (0, float(values.max())))
    middles = (edges[:-1] + edges[1:]) / 2
    points = [(float(x), float(max(count, 0.8))) for x, count in zip(middles, counts, strict=True)]
    lines, legend = [Line(name="values", points=points, colour=7)], [(f"values of the input of {LAYER}", 7, "")]
    for place, (name, percentile) in enumerate(CALIBRATORS):
        calibrator = Calibrator(name, percentile)
        calibrator.observe(values)
        amax = float(np.ravel(calibrator.amax())[0])
        lines.append(Line(name=name, points=[(amax, 0.8), (amax, float(counts.max()))], colour=place, dash=place % 4))
        said = name if percentile is None else f"{name} {percentile:g}"
        clipped = int((values > amax).sum())
        dash = ("", "7 4", "2 3", "9 3 2 3")[place % 4]
        legend.append((f"{said}: ±{amax:.3g}, clips {clipped:,} of {values.size:,} values", place, dash))
    x = Axis(title=f"absolute value of the input of {LAYER}", low=0, high=float(values.max()) * 1.02)
    y = Axis(title="how many (logarithmic)", low=0.8, high=float(counts.max()) * 1.3, log=True, form="{:,.0f}".format)
    described = "; ".join(text for text, _, _ in legend)
    write("calibration.svg", line_chart("Values and chosen ranges", described, lines, x, y, markers=False), legend)


def build(folder: Path, name: str, rules: list[dict[str, str]]) -> rb.BuildResult:
    """Build vgg with rules."""
    quantize = {"layers": rules, "keep": "all"}
    recipe = rb.Recipe.load("vgg", quantize=quantize, compile={"target": "onnxruntime"})
    return rb.build(recipe, work=folder / name, output=folder / name / "repository")


def main() -> None:
    """Draw every picture."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        builds = {name: build(folder, f"b{place}", rules) for place, (name, rules) in enumerate(RULES.items())}
        rows = []
        for name, built in builds.items():
            placed = next(item for item in built.engine.accuracy if item.form == "placed")
            rows.append((f"{name}: top-1 {100 * (placed.top1 or 0):.2f} %", [placed.outputs[0].sqnr_db or 0.0]))
        write("rules.svg", bar_chart("Signal to noise by rules", str(rows), rows, ("SQNR",), "{:.1f} dB".format), [])

        whole = builds["every layer"]
        runs = {item.name: item for item in became(whole.engine.model)}
        layers = [
            (f"{item.name} → {runs[item.name].operator} ({runs[item.name].got})", [item.sqnr_db or 0.0])
            for item in whole.engine.layers
        ]
        write("became.svg", bar_chart("What each layer became", str(layers), layers, ("SQNR",), "{:.1f} dB".format), [])

        recipe = whole.engine.recipe
        data = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed)
        samples = next(iter(data.split("calibration").inputs.values()))
        histogram(activations(whole.exported.path / "model.fp32.onnx", LAYER, samples))


if __name__ == "__main__":
    main()
