"""Build, validate, serve, measure and judge the pretrained networks of the zoo, each by its recipe and its task.

    make zoo                                            all of it, data and packages included
    .venv/bin/python examples/zoo/run.py [NETWORK ...]  after examples/zoo/make_data.py

Judged is what the server answers, against ONNX Runtime on the fp32 graph, on inputs that neither calibration nor anyone
who wrote a recipe has seen (``build/zoo/judged``): the same text, the same mask, the same class, the same nearest
neighbour. Beside it stand all layers in int8 that were to be, and ONNX Runtime's own
quantize_static, judged likewise, and where fp32's time goes (``times.py``). Exit code 1 where a step fails or a bar of
a task is missed.

A row that is done is kept under build/zoo/rows, and is not made again on the same commit, machine and libraries: a run
that was cut goes on. The result is written once all rows are there, all of one commit and machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import tritonclient.grpc as triton
from tasks import FASTER, TASKS  # beside this file
from times import shares, static
from tritonclient.utils import np_to_triton_dtype

from repo_builder import datasets, serve
from repo_builder.compile.onnxruntime.speed import compare
from repo_builder.core import artifacts, environment
from repo_builder.core.artifacts import FP32_MODEL, EngineArtifact, OnnxArtifact
from repo_builder.core.recipe import Recipe
from repo_builder.flows.build.lowering import Ready

ROOT, HERE = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
COMMAND = [sys.executable, "-m", "repo_builder"]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Another int8 form of a network.

    Attributes:
        score: As a row's, in ONNX Runtime; None where it does not run.
        speed: As a row's.
    """

    score: float | None
    speed: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network's figures.

    Attributes:
        network: Its recipe.
        task: What it is judged by.
        score: The fraction.
        samples: Inputs that judged, none of them among those that recipes were chosen by.
        bar: What had to be reached.
        int8_layers: Layers that are int8, of those that were to be.
        asked_layers: Layers that were to be int8.
        speed: Batch size → times as fast as fp32 in ONNX Runtime, one thread, CPU time; empty where nothing is int8.
        all_int8: Every layer in int8 that was to be, whatever the outputs keep; None where none was to be.
        quantize_static: What ONNX Runtime's own quantizer makes of the network; None likewise.
        shares: What of fp32's time is convolutions, matrix products, and each larger operator.
        tried: What was weighed, a sentence each.
        served_p50_us: Median latency through the server at batch 1, µs.
        build_s: Seconds that the build took.
    """

    network: str
    task: str
    score: float
    samples: int
    bar: float
    int8_layers: int
    asked_layers: int
    speed: dict[int, float]
    all_int8: Beside | None
    quantize_static: Beside | None
    shares: dict[str, float]
    tried: tuple[str, ...]
    served_p50_us: float | None
    build_s: float

    @property
    def heavy(self) -> float:
        """What of fp32's time is convolutions and matrix products."""
        return sum(self.shares.get(kind, 0.0) for kind in ("convolution", "matrix product"))

    @property
    def missed(self) -> tuple[str, ...]:
        """Which bars it misses, and what is known of why."""
        found = [] if self.score >= self.bar else [f"{self.task} {self.score:.3f}, under {self.bar:.3f}"]
        slowest = min(self.speed.values(), default=1.0)
        if self.asked_layers and slowest < FASTER:
            why = [f"{100 * self.heavy:.0f} % of fp32's time is convolutions and matrix products"]
            for what, form in (
                ("every layer that was to be int8", self.all_int8),
                ("quantize_static", self.quantize_static),
            ):
                if form is not None and form.speed:
                    score = "" if form.score is None else f" and scores {form.score:.3f}"
                    why.append(f"{what} is {min(form.speed.values()):.2f} times as fast{score}")
            found.append(f"{slowest:.2f} times as fast as fp32, under {FASTER}: {'; '.join(why)}")
        return tuple(found)


def cli(*arguments: str) -> None:
    """Run repo-builder; stop where it fails."""
    done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"repo-builder {' '.join(arguments)}: exit code {done.returncode}")


def network(name: str, work: Path) -> Row:
    """Take one network through every step."""
    path, repository = HERE / f"{name}.toml", work / "repository"
    started = time.perf_counter()
    cli("build", str(path), "--target", "onnxruntime", "--work", str(work / "build"), "--output", str(repository))
    build_s = time.perf_counter() - started
    cli("validate", str(repository), "--model", name)
    engine = artifacts.read(EngineArtifact, work / "build" / name / "engine")
    recipe = engine.recipe
    data = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=None)
    samples = _judged(recipe, work)
    output = recipe.model.outputs[0].name
    source = work / "build" / name / "onnx" / FP32_MODEL
    exact = _answers(source, recipe, samples, output)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    figures = work / f"{name}.json"
    with serve.start(repository, runtime="embedded", models=(name,), log=work / f"{name}.log", **ports) as server:
        server.wait_ready(120)
        answers = _served(server.grpc_url, name, recipe, samples, output)
        urls = ("--url", server.grpc_url, "--metrics-url", server.metrics_url)
        measured = ("--window-ms", "400", "--max-windows", "4", "--json", str(figures))
        cli("perf", name, "--work", str(work / "build"), *urls, *measured)
    details, asked = engine.details, [row for row in engine.layers if row.asked == "int8"]
    forms = _beside(name, work, engine, data.split("calibration").inputs, samples) if asked else {}
    return Row(
        network=name,
        task=TASKS[name].what,
        score=TASKS[name].judge(exact, answers),
        samples=len(answers),
        bar=TASKS[name].bar,
        int8_layers=sum(row.got == "int8" for row in asked),
        asked_layers=len(asked),
        speed={row.batch_size: round(row.speedup, 3) for row in details.speed},
        all_int8=forms.get("all"),
        quantize_static=forms.get("static"),
        shares=shares(source, _whole(recipe, samples, 0)),
        tried=tuple(item for item in details.notes if item.startswith("int8, ")),
        served_p50_us=_median(figures),
        build_s=round(build_s, 1),
    )


def _judged(recipe: Recipe, work: Path) -> dict[str, Array]:
    """Return the samples that no recipe was chosen by."""
    with np.load(work / "judged" / Path(recipe.data.source).name) as saved:
        return {item.name: saved[item.name] for item in recipe.model.inputs}


def _whole(recipe: Recipe, samples: Mapping[str, Array], place: int) -> dict[str, Array]:
    """Return one sample as a model's tensors."""
    feed = {}
    for spec in recipe.model.inputs:
        value = np.asarray(samples[spec.name][place])
        feed[spec.name] = value if spec.batch_axis < 0 else np.ascontiguousarray(np.expand_dims(value, spec.batch_axis))
    return feed


def _beside(
    name: str, work: Path, engine: EngineArtifact, calibration: Mapping[str, Array], samples: Mapping[str, Array]
) -> dict[str, Beside]:
    """Time and judge all layers in int8, and what quantize_static makes; these networks have their batch in front."""
    exported, recipe = artifacts.read(OnnxArtifact, work / "build" / name / "onnx"), engine.recipe
    count, output = len(next(iter(samples.values()))), recipe.model.outputs[0].name
    sizes = {size: {key: value[np.arange(size) % count] for key, value in samples.items()} for size in _sizes(engine)}
    step = recipe.quantize.batch_size
    feeds = (
        {key: value[start : start + step] for key, value in calibration.items()}
        for start in range(0, len(next(iter(calibration.values()))), step)
    )
    exact = _answers(exported.model, recipe, samples, output)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all.onnx"
        Ready.of(exported, ("onnxruntime-cpu", "none")).write(exported, path, {})
        timed = {row.batch_size: round(row.speedup, 3) for row in compare(exported.model, path, sizes)}
        other, others = static(exported.model, feeds, sizes, Path(folder))
        found = {}
        for kind, file, speed in (("all", path, timed), ("static", other, others)):
            score = TASKS[name].judge(exact, _answers(file, recipe, samples, output))
            found[kind] = Beside(score=score, speed=speed)
    return found


def _sizes(engine: EngineArtifact) -> tuple[int, ...]:
    """Return the batch sizes that a build timed; 1 alone where it timed none."""
    return tuple(row.batch_size for row in engine.details.speed) or (1,)


def _answers(path: Path, recipe: Recipe, samples: Mapping[str, Array], output: str) -> Array:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    count = len(next(iter(samples.values())))
    return np.concatenate([session.run([output], _whole(recipe, samples, place))[0] for place in range(count)])


def _served(url: str, name: str, recipe: Recipe, samples: Mapping[str, Array], output: str) -> Array:
    client = triton.InferenceServerClient(url)
    found = []
    for place in range(len(next(iter(samples.values())))):
        given = []
        for key, whole in _whole(recipe, samples, place).items():
            value = whole.reshape(1) if whole.ndim == 0 else whole  # Triton has no scalars
            tensor = triton.InferInput(key, value.shape, np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(value)
            given.append(tensor)
        found.append(client.infer(name, given).as_numpy(output))
    return np.concatenate(found)


def _median(path: Path) -> float | None:
    """Return the median latency of the last window that perf measured."""
    levels = json.loads(path.read_text(encoding="utf-8"))["levels"]
    windows = levels[0]["windows"] if levels else []
    return windows[-1]["latency"]["p50_us"] if windows else None


def _identity() -> dict[str, Any]:
    """Return what all rows of one result share: the commit, and the machine with its libraries."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return {
        "commit": commit or None,
        "changed": sorted(line[3:] for line in changed.splitlines() if not line.endswith("results/zoo.json")),
        **environment.describe(),
    }


def _kept(path: Path, identity: dict[str, Any]) -> Row | None:
    """Return a row that an earlier run made of the same commit on the same machine."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["identity"] != identity:
        return None
    row = found["row"]
    row["speed"] = _by_size(row["speed"])
    for key in ("all_int8", "quantize_static"):
        form = row[key]
        row[key] = form and Beside(score=form["score"], speed=_by_size(form["speed"]))
    return Row(**{**row, "tried": tuple(row["tried"])})


def _by_size(speed: Mapping[str, float]) -> dict[int, float]:
    return {int(size): value for size, value in speed.items()}


def _write(path: Path, content: Any) -> None:  # noqa: ANN401 - any JSON value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Run networks, print a table, write the results once all are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", choices=[*TASKS, []], default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "zoo.json")
    parser.add_argument("--again", action="store_true", help="make rows again that are there")
    chosen = parser.parse_args(arguments)
    work, identity = ROOT / "build" / "zoo", _identity()
    known = {name: work / "rows" / f"{name}.json" for name in TASKS}
    rows = []
    for name in chosen.networks or TASKS:
        row = None if chosen.again else _kept(known[name], identity)
        if row is None:
            row = network(name, work)
            _write(known[name], {"identity": identity, "row": asdict(row)})
        rows.append(row)
    whole = [row for row in (_kept(path, identity) for path in known.values()) if row is not None]
    if len(whole) == len(TASKS):
        _write(chosen.out, {**identity, "rows": [{**asdict(row), "missed": row.missed} for row in whole]})
    else:
        print(
            f"{len(whole)} of {len(TASKS)} rows are of this commit and machine; {chosen.out} is written with the last"
        )
    print(
        f"\n{'network':13} {'task':23} {'score':>6} {'bar':>6} {'int8':>8} {'times as fast':>20} {'served p50 µs':>14}"
    )
    for row in rows:
        speed = ", ".join(f"{value:.2f} at {size}" for size, value in row.speed.items()) or "1 (all fp32)"
        layers, latency = f"{row.int8_layers}/{row.asked_layers}", row.served_p50_us or float("nan")
        print(
            f"{row.network:13} {row.task:23} {row.score:6.3f} {row.bar:6.3f} {layers:>8} {speed:>20} {latency:14.0f}"
            + (f"  missed: {'; '.join(row.missed)}" if row.missed else "")
        )
    return 1 if any(row.score < row.bar for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
