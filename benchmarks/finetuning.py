"""What fine-tuning gives back of int8's loss: VGG7 and a depthwise network on CIFAR-10, and the jets' classifier.

    python benchmarks/finetuning.py train OUT --data-dir DATA --vgg VGG7     # where a GPU is: trains and fine-tunes
    python benchmarks/finetuning.py score OUT --data-dir DATA --vgg VGG7     # on the CPU that serves: the JSON

``train`` trains the depthwise network in fp32, looks for the first form (``FORMS``) in which calibration alone loses a
point and a half, and builds it and ``vgg-cifar10`` with ``[finetune]`` through both back ends, for ONNX Runtime's CPU
placement. It scores on the first test images alone, to be done soon, and leaves in OUT what ``score`` needs: the
depthwise network's weights and exported artifacts, and VGG7's compiled graphs. ``score`` builds all as calibrated
alone, builds ``jsc`` with ``[finetune]``, and scores every model on the whole test split. Bars: fine-tuned int8 of
``vgg-cifar10`` and ``jsc`` at least fp32 less 0.1 points; of the depthwise network at least two thirds of calibration's
loss come back.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from repo_builder import datasets, models
from repo_builder.core import codec, environment, progress
from repo_builder.core.recipe import Recipe, parse
from repo_builder.flows.build import BuildOptions, BuildResult, build, compile_artifact, load_exported, running

HERE = Path(__file__).resolve().parent
BACKENDS = ("modelopt", "pytorch-quantization")
_MAX = {"calibrator": "max"}
_TENSOR = {"per_channel": False}


def _percentile(percent: float) -> dict[str, Any]:
    return {"calibrator": "percentile", "percentile": percent}


# Quantizers of inputs and of weights, from those that cost least; ``train`` takes the first that costs enough.
FORMS: dict[str, dict[str, Any]] = {
    "one range a weight, max": {"input": _MAX, "weight": {**_MAX, **_TENSOR}},
    "one range a weight, percentile 99.9 of all": {
        "input": _percentile(99.9),
        "weight": {**_percentile(99.9), **_TENSOR},
    },
    "one range a weight, percentile 99 of inputs": {"input": _percentile(99.0), "weight": {**_MAX, **_TENSOR}},
    "one range a weight, percentile 99 of all": {
        "input": _percentile(99.0),
        "weight": {**_percentile(99.0), **_TENSOR},
    },
    "one range a weight, percentile 97 of all": {
        "input": _percentile(97.0),
        "weight": {**_percentile(97.0), **_TENSOR},
    },
}
LEAST_LOSS = 0.01
MARGIN = 0.005  # of what is lost on the first test images alone
VGG = {"epochs": 4, "batch_size": 128, "learning_rate": 3e-5, "augment": ["shift", "mirror"]}
DEPTHWISE = {
    "epochs": 5,
    "batch_size": 128,
    "learning_rate": 1e-4,
    "range_learning_rate": 5e-3,
    "augment": ["shift", "mirror"],
}
JSC = {"epochs": 10, "batch_size": 256, "learning_rate": 3e-4}
SHOWN_TEST = 2000  # test images that ``train`` scores
_RECORD = 3073


def vgg(backend: str | None) -> Recipe:
    """Return the built-in recipe with ``[finetune]`` through a back end; as it is for None."""
    recipe = Recipe.load("vgg-cifar10", quantize={"keep": "all"})
    return recipe if backend is None else recipe.changed(quantize={"backend": backend}, finetune=VGG)


def jsc(backend: str | None) -> Recipe:
    """Return the built-in recipe likewise."""
    recipe = Recipe.load("jsc", quantize={"keep": "all"})
    return recipe if backend is None else recipe.changed(quantize={"backend": backend}, finetune=JSC)


def depthwise(form: str, backend: str | None, *, quick: bool) -> Recipe:
    """Return the depthwise network's recipe in a form, with ``[finetune]`` through a back end or without."""
    rules = [{"type": kind, "precision": "int8", **FORMS[form]} for kind in ("Conv2d", "Linear")]
    epochs = {"epochs": 1} if quick else {}
    return parse({
        "name": "depthwise",
        "model": {
            "source": f"{HERE / 'finetuning_network.py'}:depthwise",
            "arguments": {"width": 0.25 if quick else 1.0},
            "inputs": [{"name": "image", "dtype": "fp32", "shape": [3, 32, 32]}],
            "outputs": [{"name": "logits", "dtype": "fp32", "shape": [10]}],
        },
        "data": {"source": "cifar10", "validation": 0.1},
        "train": {
            "epochs": 1 if quick else 40,
            "batch_size": 256,
            "learning_rate": 4e-3,
            "weight_decay": 1e-2,
            "augment": ["shift", "mirror"],
        },
        "quantize": {"keep": "all", "backend": backend or "onnxruntime", "layers": rules},
        **({"finetune": {**DEPTHWISE, **epochs}} if backend else {}),
    })  # fmt: skip


def run(recipe: Recipe, work: Path, options: argparse.Namespace, checkpoint: Path | None) -> BuildResult:
    """Build for ONNX Runtime; a model that departs is what is looked for here."""
    return build(
        BuildOptions(
            recipe=recipe,
            work=work,
            repository=work / "repository",
            target="onnxruntime",
            checkpoint=checkpoint,
            data_dir=options.data_dir,
            accept_departure=True,
        )
    )


def top1(result: BuildResult) -> dict[str, float]:
    """Return form → top-1."""
    return {item.form: float(item.top1 or 0.0) for item in result.engine.accuracy}


def _samples(result: BuildResult) -> int:
    return result.engine.accuracy[0].samples


def train(options: argparse.Namespace) -> None:
    """Train and fine-tune; VGG7 beside the depthwise network."""
    options.out.mkdir(parents=True, exist_ok=True)
    options.data_dir = _fewer(options)
    started = time.perf_counter()
    vgg_runs = {name: _beside("vgg", name, "", options) for name in BACKENDS if "vgg" in options.networks}
    checkpoint, form, tried = options.out / "depthwise.safetensors", "", {}
    runs: dict[str, subprocess.Popen[bytes]] = {}
    if "depthwise" in options.networks:
        if not checkpoint.is_file():
            _train_fp32(checkpoint, options)
        form, tried = _form(checkpoint, options)
        runs |= {f"depthwise {name}": _beside("depthwise", name, form, options) for name in BACKENDS}
    runs |= {f"vgg {name}": one for name, one in vgg_runs.items()}
    failed = [name for name, one in runs.items() if one.wait() != 0]
    told = {"form": form, "tried": tried, "seconds": round(time.perf_counter() - started, 1), "failed": failed}
    told |= {"hardware": _hardware(), "quick": options.quick}
    (options.out / "train.json").write_text(json.dumps(told, indent=1) + "\n")
    with tarfile.open(options.out / "depthwise.tar.gz", "w:gz") as packed:
        for name in ("depthwise.safetensors", "train.json"):
            packed.add(options.out / name, name)
        for path in sorted(options.out.glob("*.json")):
            if path.name != "train.json":
                packed.add(path, path.name)
        for name in BACKENDS:
            folder = options.out / f"depthwise-{name}" / "depthwise" / "onnx"
            if folder.is_dir():
                packed.add(folder, f"depthwise-{name}/depthwise/onnx")
    print(json.dumps(told, indent=1))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _fewer(options: argparse.Namespace) -> Path:
    """Return a folder with the same training images and the first test images."""
    folder: Path = options.out / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True, exist_ok=True)
    source = options.data_dir
    source = source / "cifar-10-batches-bin" if (source / "cifar-10-batches-bin").is_dir() else source
    for path in source.glob("data_batch_*.bin"):
        images = 500 if options.quick else None
        (folder / path.name).write_bytes(path.read_bytes()[: None if images is None else images * _RECORD])
    shown = 200 if options.quick else SHOWN_TEST
    (folder / "test_batch.bin").write_bytes((source / "test_batch.bin").read_bytes()[: shown * _RECORD])
    shutil.copyfile(source / "batches.meta.txt", folder / "batches.meta.txt")
    return folder


def _train_fp32(checkpoint: Path, options: argparse.Namespace) -> None:
    import torch

    from repo_builder.models import training

    recipe = depthwise(next(iter(FORMS)), None, quick=options.quick)
    dataset = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=options.data_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = models.create(recipe.model, seed=recipe.seed)
    with progress.step("train depthwise") as step:
        found = training.train(recipe, module, dataset, checkpoint, resume=False, progress=progress.bar, device=device)
        step.note(f"top-1 {found['test']['top1']:.4f}")


def _form(checkpoint: Path, options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the first form in which calibration alone loses clearly more than a point; the last where none does."""
    tried: dict[str, Any] = {}
    for form in FORMS:
        result = run(depthwise(form, None, quick=options.quick), options.out / "calibrated", options, checkpoint)
        tried[form] = top1(result)
        if tried[form]["fp32"] - tried[form]["onnxruntime"] >= LEAST_LOSS + MARGIN:
            break
    return form, tried


def _beside(network: str, backend: str, form: str, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Build one network in a process of its own, with a share of the cores."""
    log = (options.out / f"{network}-{backend}.log").open("wb")
    threads = str(max(1, (os.cpu_count() or 4) // 4))
    command = [sys.executable, __file__, "one", str(options.out), "--network", network, "--backend", backend]
    command += ["--form", form, "--data-dir", str(options.data_dir), "--vgg", str(options.vgg)]
    command += ["--quick"] if options.quick else []
    return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": threads}
    )


def one(options: argparse.Namespace) -> None:
    """Build one network with ``[finetune]`` through one back end."""
    work = options.out / f"{options.network}-{options.backend}"
    if options.network == "vgg":
        recipe, checkpoint = vgg(options.backend), options.vgg
        if options.quick:
            recipe = recipe.changed(finetune={"epochs": 1}, data={"calibration": 32})
    else:
        recipe = depthwise(options.form, options.backend, quick=options.quick)
        checkpoint = options.out / "depthwise.safetensors"
    result = run(recipe, work, options, checkpoint)
    if options.network == "vgg":
        shutil.copyfile(result.engine.model, options.out / f"vgg-{options.backend}.onnx")
    _write(options.out / f"{options.network}-{options.backend}.json", recipe, result)


def _write(path: Path, recipe: Recipe, result: BuildResult) -> None:
    """Write what a fine-tuned build says of itself."""
    value = {
        "finetune": recipe.to_dict()["finetune"],
        "top1": top1(result),
        "record": codec.plain(result.exported.details.finetuned, nulls=True),
        "environment": result.exported.environment,
    }
    path.write_text(json.dumps(value, indent=1) + "\n")


def score(options: argparse.Namespace) -> None:
    """Score networks on the whole test split, and write their rows; those of others stay."""
    packed, work = options.out / "depthwise.tar.gz", options.out / "score"
    rows: list[dict[str, Any]] = []
    if options.output.is_file():
        kept = json.loads(options.output.read_text())["rows"]
        names = [{"vgg": "vgg-cifar10"}.get(name, name) for name in options.networks]
        rows = [row for row in kept if row["network"] not in names]
    if "jsc" in options.networks:
        rows += _score_jsc(work, options)
    if "depthwise" in options.networks:
        if packed.is_file():
            with tarfile.open(packed, "r:gz") as stored:
                stored.extractall(options.out, filter="data")
        rows += _score_depthwise(json.loads((options.out / "train.json").read_text()), work, options)
    if "vgg" in options.networks:
        rows += _score_vgg(work, options)
    rows.sort(key=lambda row: (row["network"], row["backend"]))
    result = {"rows": rows, "bars": _bars(rows)}
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["bars"], indent=1))


def _score_jsc(work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    options = argparse.Namespace(**{**vars(options), "data_dir": None})
    plain = run(jsc(None), work / "jsc", options, None)
    rows = []
    for name in BACKENDS:
        tuned = run(jsc(name), work / f"jsc-{name}", options, None)
        _write(options.out / f"jsc-{name}.json", jsc(name), tuned)
        found = top1(tuned)["onnxruntime"]
        rows.append(_row("jsc", name, "as in the recipe", top1(plain), found, _samples(plain), options))
    return rows


def _score_depthwise(told: dict[str, Any], work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    # the graphs bring what fp32 says of the test images that ``train`` scored: the same ones here
    options = argparse.Namespace(**{**vars(options), "data_dir": _fewer(options)})
    checkpoint, form = options.out / "depthwise.safetensors", told["form"]
    plain = run(depthwise(form, None, quick=told["quick"]), work / "depthwise", options, checkpoint)
    rows = []
    for name in BACKENDS:
        exported = load_exported(options.out / f"depthwise-{name}" / "depthwise")
        folder = work / f"depthwise-{name}"
        result = compile_artifact(
            exported,
            BuildOptions(
                recipe=exported.recipe,
                work=folder,
                repository=folder / "repository",
                target="onnxruntime",
                data_dir=options.data_dir,
                accept_departure=True,
                trust_code=True,
            ),
        )
        found = top1(result)["onnxruntime"]
        rows.append(_row("depthwise", name, form, top1(plain), found, _samples(plain), options))
    return rows


def _score_vgg(work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Score VGG7's compiled graphs; all forms that a build runs on the way would take an hour."""
    from repo_builder.compile.onnxruntime.target import OnnxRuntimeRunner
    from repo_builder.models.running import run as run_torch

    recipe = vgg(None)
    few = argparse.Namespace(**{**vars(options), "data_dir": _fewer(options)})
    graphs = {"calibrated": run(recipe, work / "vgg", few, options.vgg).engine.model}
    graphs |= {name: options.out / f"vgg-{name}.onnx" for name in BACKENDS}
    dataset = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=options.data_dir)
    samples = dataset.split("test")
    batches = running.batches_of(graphs["calibrated"], recipe.model.inputs, recipe.model.outputs)
    module = models.create(recipe.model, seed=recipe.seed)
    models.load_checkpoint(module, options.vgg, where="--vgg")
    with progress.step("run vgg in fp32"):
        outputs = {"fp32": run_torch(module, samples.inputs, batches)["logits"]}
    for name, graph in graphs.items():
        with progress.step(f"run vgg, {name}"), OnnxRuntimeRunner(graph) as model:
            outputs[name] = running.run(model, batches, samples.inputs)["logits"]
    right = {name: float((found.argmax(1) == samples.labels).mean()) for name, found in outputs.items()}
    plain = {"fp32": right["fp32"], "onnxruntime": right["calibrated"]}
    return [
        _row("vgg-cifar10", name, "as in the recipe", plain, right[name], len(samples), options) for name in BACKENDS
    ]


def _row(
    network: str,
    backend: str,
    form: str,
    plain: dict[str, float],
    tuned: float,
    samples: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return a network's line: top-1 on the whole test split, ``plain`` without fine-tuning."""
    short = {"vgg-cifar10": "vgg"}.get(network, network)
    made = json.loads((options.out / f"{short}-{backend}.json").read_text())
    return {
        "network": network,
        "backend": backend,
        "form": form,
        "samples": samples,
        "fp32_top1": plain["fp32"],
        "calibrated_top1": plain["onnxruntime"],
        "finetuned_top1": tuned,
        "finetune": made["finetune"],
        "best_epoch": made["record"]["best_epoch"],
        "history": made["record"]["history"],
        "fine_tuned_on": made["environment"],
        "scored_on": _hardware(),
        "scored": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _bars(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for each line whether its bar is reached, and by which number."""
    bars: dict[str, Any] = {}
    for row in rows:
        lost, left = row["fp32_top1"] - row["calibrated_top1"], row["fp32_top1"] - row["finetuned_top1"]
        if row["network"] == "depthwise":
            share = (lost - left) / lost if lost else 0.0
            holds, told = lost >= LEAST_LOSS and share >= 2 / 3, {"lost": lost, "recovered": share}
        else:
            holds, told = left <= 0.001 + 1e-9, {"below_fp32": left}
        bars[f"{row['network']}, {row['backend']}"] = {"holds": holds, **{k: round(v, 5) for k, v in told.items()}}
    return bars


def _hardware() -> dict[str, Any]:
    import torch

    found = environment.describe()
    found["torch"] = torch.__version__
    found["gpu_of_torch"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


def main() -> None:
    """Train, or score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "one", "score"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--vgg", type=Path, required=True, help="weights of VGG7 on CIFAR-10")
    parser.add_argument("--networks", nargs="*", default=["vgg", "depthwise", "jsc"], help="jsc is for score alone")
    parser.add_argument("--quick", action="store_true", help="everything small, to see that it runs")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "finetuning.json")
    for name in ("network", "backend", "form"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    {"train": train, "one": one, "score": score}[options.step](options)


if __name__ == "__main__":
    main()
