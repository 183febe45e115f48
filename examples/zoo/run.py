"""Build, validate, serve, measure and judge the pretrained networks of the zoo, each by its recipe and its task.

    make zoo                                            all of it, data and packages included
    .venv/bin/python examples/zoo/run.py [NETWORK ...]  after examples/zoo/make_data.py

Judged is what the server answers, against ONNX Runtime on the fp32 graph, on held-out inputs: the same text, the same
mask, the same class, the same nearest neighbour. Exit code 1 where a step fails or a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from repo_builder import datasets, serve
from repo_builder.core import artifacts
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.recipe import Recipe

ROOT, HERE = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
COMMAND = [sys.executable, "-m", "repo_builder"]
Array = np.ndarray[Any, Any]


def texts(scores: Array) -> list[tuple[int, ...]]:
    """Return what a recogniser reads: the likeliest letters, repeats and blanks left out (CTC)."""
    rows = []
    for best in scores.argmax(-1):
        kept = [int(item) for place, item in enumerate(best) if item and (place == 0 or item != best[place - 1])]
        rows.append(tuple(kept))
    return rows


def same_text(exact: Array, served: Array) -> float:
    """Return the fraction of lines that read the same."""
    return float(np.mean([one == other for one, other in zip(texts(exact), texts(served), strict=True)]))


def mask_overlap(exact: Array, served: Array) -> float:
    """Return intersection over union of all pixels that are text (0.3 is PP-OCR's own threshold)."""
    one, other = exact > 0.3, served > 0.3
    return float((one & other).sum() / max(1, (one | other).sum()))


def same_class(exact: Array, served: Array) -> float:
    """Return the fraction of samples of the same class."""
    return float((exact.argmax(-1) == served.argmax(-1)).mean())


def same_answer(exact: Array, served: Array) -> float:
    """Return the fraction of files of the same kind; magika gives no kind where no score reaches 0.5."""

    def answers(scores: Array) -> Array:
        return np.where(scores.max(-1) >= 0.5, scores.argmax(-1), -1)

    return float((answers(exact) == answers(served)).mean())


def same_neighbour(exact: Array, served: Array) -> float:
    """Return the fraction of sentences whose nearest other sentence is the same."""

    def nearest(vectors: Array) -> Array:
        closeness = vectors @ vectors.T
        np.fill_diagonal(closeness, -np.inf)
        return closeness.argmax(1)

    return float((nearest(exact) == nearest(served)).mean())


def same_decision(exact: Array, served: Array) -> float:
    """Return the fraction of frames that are speech, or not, in both."""
    return float(((exact > 0.5) == (served > 0.5)).mean())


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network is judged by.

    Attributes:
        what: In words.
        judge: (fp32 outputs, served outputs), samples first → a fraction.
        bar: What has to be reached.
        heavy: Whether convolutions or MatMuls carry the time, so that int8 is to be 1.5 times as fast.
    """

    what: str
    judge: Callable[[Array, Array], float]
    bar: float
    heavy: bool = True


TASKS = {
    "magika": Task(what="same kind", judge=same_answer, bar=0.99),
    "rec": Task(what="same text", judge=same_text, bar=30 / 32),
    "det": Task(what="mask IoU", judge=mask_overlap, bar=0.96),
    "cls": Task(what="same class", judge=same_class, bar=0.99),
    "minilm": Task(what="same nearest neighbour", judge=same_neighbour, bar=0.90),
    "minilm_torch": Task(what="same nearest neighbour", judge=same_neighbour, bar=0.90),
    "vad": Task(what="same decision", judge=same_decision, bar=0.99, heavy=False),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network's figures.

    Attributes:
        network: Its recipe.
        task: What it is judged by.
        score: The fraction.
        bar: What had to be reached.
        int8_layers: Layers that are int8, of those that were to be.
        asked_layers: Layers that were to be int8.
        speed: Batch size → times as fast as fp32 in ONNX Runtime, one thread, CPU time; empty where nothing is int8.
        tried: What was weighed, a sentence each.
        served_p50_us: Median latency through the server at batch 1, µs.
        build_s: Seconds that the build took.
    """

    network: str
    task: str
    score: float
    bar: float
    int8_layers: int
    asked_layers: int
    speed: dict[int, float]
    tried: tuple[str, ...]
    served_p50_us: float | None
    build_s: float

    @property
    def missed(self) -> tuple[str, ...]:
        """Which bars it misses."""
        found = [] if self.score >= self.bar else [f"{self.task} {self.score:.3f}, under {self.bar:.3f}"]
        slowest = min(self.speed.values(), default=1.0)
        if TASKS[self.network].heavy and slowest < 1.5:
            found.append(f"{slowest:.2f} times as fast as fp32, under 1.5")
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
    samples = data.split("test").inputs
    output = recipe.model.outputs[0].name
    exact = _exact(work / "build" / name / "onnx" / "model.fp32.onnx", recipe, samples, output)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    figures = work / f"{name}.json"
    with serve.start(repository, runtime="embedded", models=(name,), log=work / f"{name}.log", **ports) as server:
        server.wait_ready(120)
        answers = _served(server.grpc_url, name, recipe, samples, output)
        urls = ("--url", server.grpc_url, "--metrics-url", server.metrics_url)
        measured = ("--window-ms", "400", "--max-windows", "4", "--json", str(figures))
        cli("perf", name, "--work", str(work / "build"), *urls, *measured)
    details, asked = engine.details, [row for row in engine.layers if row.asked == "int8"]
    return Row(
        network=name,
        task=TASKS[name].what,
        score=TASKS[name].judge(exact, answers),
        bar=TASKS[name].bar,
        int8_layers=sum(row.got == "int8" for row in asked),
        asked_layers=len(asked),
        speed={row.batch_size: round(row.speedup, 3) for row in details.speed},
        tried=tuple(item for item in details.notes if item.startswith("int8, ")),
        served_p50_us=_median(figures),
        build_s=round(build_s, 1),
    )


def _whole(recipe: Recipe, samples: Mapping[str, Array], place: int) -> dict[str, Array]:
    """Return one sample as a model's tensors."""
    feed = {}
    for spec in recipe.model.inputs:
        value = np.asarray(samples[spec.name][place])
        feed[spec.name] = value if spec.batch_axis < 0 else np.ascontiguousarray(np.expand_dims(value, spec.batch_axis))
    return feed


def _exact(path: Path, recipe: Recipe, samples: Mapping[str, Array], output: str) -> Array:
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


def _write(path: Path, rows: Sequence[Row]) -> None:
    """Write rows beside those of other networks that are there."""
    made = {row.network: {**asdict(row), "missed": row.missed} for row in rows}
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))["rows"]
        made = {row["network"]: row for row in known} | made
    found = [made[name] for name in TASKS if name in made]
    text = json.dumps({"onnxruntime": ort.__version__, "rows": found}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Run networks, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", choices=[*TASKS, []], default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "zoo.json")
    chosen = parser.parse_args(arguments)
    work = ROOT / "build" / "zoo"
    rows = []
    for name in chosen.networks or TASKS:
        rows.append(network(name, work))
        _write(chosen.out, rows)
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
