"""Damaged inputs of every kind that repo-builder reads, and the command that reads each."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import onnx
import subjects
from subjects import RECIPE, SAMPLES, Subject

from repo_builder import cli
from repo_builder.core.errors import RepoBuilderError

RICH = RECIPE.replace(
    "[repository]",
    "[compile.tensorrt]\nprofiles = [{ min_batch = 1, opt_batch = 8, max_batch = 16 }]\nworkspace_mib = 64\n"
    "optimization_level = 3\n[train]\nepochs = 2\nlearning_rate = 1e-3\n[repository]\npreferred_batch_sizes = [4, 8]\n"
    "max_queue_delay_us = 100\nwarmup_batch_sizes = [1]",
)
ENSEMBLE = """name: "ens"
platform: "ensemble"
max_batch_size: 16
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 5 ] } ]
ensemble_scheduling { step [ { model_name: "subject" model_version: -1
  input_map { key: "x" value: "IN" } output_map { key: "y" value: "OUT" } } ] }
"""
_KEYS = (
    "name", "seed", "model.source", "model.arguments.a", "model.checkpoint", "model.inputs.0.shape",
    "model.inputs.0.shape.0", "data.source", "data.test", "data.calibration", "data.arguments.x",
    "quantize.batch_size", "quantize.layers.0.precision", "quantize.layers.0.input.percentile", "quantize.layers.²",
    "quantize.layers.-1.type", "quantize.layers.9", "quantize.layers.0.input.calibrator", "repository.max_batch_size",
    "repository.preferred_batch_sizes", "compile.tensorrt.profiles", "x.y.z", "", ".", "a." * 500 + "b", "model",
    "export.opset", "measure.metric", "quantize.layers.٣.type",
)  # fmt: skip
_OPTIONS = (
    [], [], [], ["--version", "0"], ["--version", "²"], ["--version", "1" * 5000], ["--version", "٣"],
    ["--keep-versions", "9" * 40], ["--checkpoint", "/"], ["--checkpoint", " "],
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input.

    Attributes:
        call: What reads it and returns an exit code.
        what: The command, for whoever looks into a failure.
        files: What was damaged.
    """

    call: Callable[[], int | None]
    what: list[str]
    files: tuple[Path, ...] = ()


Maker = Callable[[Subject, Path, random.Random], Case]


def command(arguments: list[str], *files: Path) -> Case:
    """A case of the command line."""
    return Case(call=lambda: cli.run(arguments), what=arguments, files=files)


def reader(call: Callable[[], Any], what: str, *files: Path) -> Case:
    """A case of a reader that the command line reaches only with a server: its own errors are its exit codes."""

    def run() -> int:
        try:
            call()
        except RepoBuilderError as error:
            return error.exit_code
        return 0

    return Case(call=run, what=[what], files=files)


def build(folder: Path, recipe: Path, *more: str) -> list[str]:
    """The arguments of a build whose results stay in a folder."""
    return ["build", str(recipe), "--work", str(folder / "w"), "--output", str(folder / "o"), *more]


def recipe(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """A recipe's text."""
    path = folder / "r.toml"
    path.write_bytes(mutations.text_of(rnd.choice([RECIPE, RICH]), rnd))
    return command(build(folder, subject.copy_into(folder)), path)


def settings(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """Values of ``--set`` and of options."""
    more = ["bare word", "a = 1", "\n", "1\nname='x'", "'''", "nan"]
    value = rnd.choice([*mutations.NUMBERS, *mutations.TEXTS, *mutations.ODD, *more])
    setting = f"{rnd.choice(_KEYS)}={value}" if rnd.random() < 0.95 else value
    return command(build(folder, subject.copy_into(folder), "--set", setting, *rnd.choice(_OPTIONS)))


def pbtxt(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """A model repository whose config.pbtxt or folders are odd."""
    repository = Path(shutil.copytree(subject.repository, folder / "repo"))
    (repository / "ens" / "1").mkdir(parents=True)
    (repository / "ens" / "config.pbtxt").write_text(ENSEMBLE)
    which = rnd.choice(["subject", "ens"])
    path = repository / which / "config.pbtxt"
    path.write_bytes(mutations.text_of(path.read_text(), rnd))
    chance = rnd.random()
    if chance < 0.03:
        path.unlink()
        path.mkdir()
    elif chance < 0.05:
        path.unlink()
        path.symlink_to("config.pbtxt")
    elif chance < 0.08:
        (repository / which / rnd.choice(["²", "-1", "00", "1x", "1" * 200, "9" * 20])).mkdir()
    elif chance < 0.10:
        (repository / which / "2").symlink_to("..")
    elif chance < 0.12:
        (repository / "self").symlink_to(".")
    return command(["validate", str(repository), *rnd.choice([[], ["--json"], ["--strict"]])], path)


def _model(subject: Subject, folder: Path, rnd: random.Random) -> Path:
    path = folder / "m.onnx"
    protos = [subjects.dense(), subjects.convolution(), onnx.load(subject.placed)]
    path.write_bytes(mutations.model_of(rnd.choice(protos), rnd))
    return path


def onnx_file(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """An .onnx for config, inspect or validate."""
    path = _model(subject, folder, rnd)
    chance = rnd.random()
    if chance < 0.3:
        return command(["inspect", str(path), *rnd.choice([[], ["--json"]])], path)
    if chance < 0.65:
        more = [
            [], ["--max-batch-size", rnd.choice(["0", "1", "-1", "99999999999"])], ["--warmup", "1"],
            ["--dims", rnd.choice(["x:3,224", "x:", "x:-1", ":", "x:99999999999999999999"])],
            ["--name", rnd.choice(['a"b', "a\nb", "", "../x"])], ["--parameter", 'a="\n}'],
        ]  # fmt: skip
        return command(["config", str(path), *rnd.choice(more)], path)
    repository = Path(shutil.copytree(subject.repository, folder / "repo"))
    shutil.copy(path, repository / "subject" / "1" / "model.onnx")
    for name, odds in (("config.pbtxt", 0.5), ("1/manifest.json", 0.7)):
        if rnd.random() < odds:
            (repository / "subject" / name).unlink()
    return command(["validate", str(repository)], path)


def onnx_build(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """An .onnx for build."""
    is_convolution = rnd.random() < 0.5
    text = RECIPE.replace('"classification"', '"other"').replace('"int8"', f'"{rnd.choice(["int8", "fp16"])}"', 1)
    proto = subjects.dense()
    if is_convolution:
        text = text.replace("shape = [16]", "shape = [3, 8, 8]").replace("shape = [5]", "shape = [4, 6, 6]")
        np.savez(folder / "data.npz", x=subjects.values(SAMPLES, 3, 8, 8))
        proto = subjects.convolution()
    (folder / "m.onnx").write_bytes(mutations.model_of(proto, rnd))
    (folder / "r.toml").write_text(text)
    return command(build(folder, subject.copy_into(folder)), folder / "m.onnx", folder / "r.toml")


def manifest(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """The manifest of an artifact for compile and inspect, or of a placed plan for validate and inspect."""
    if rnd.random() < 0.6:
        copied = Path(shutil.copytree(subject.work / "subject", folder / "b" / "subject"))
        which = rnd.choice(["onnx", "engine"])
        path = copied / which / "manifest.json"
        path.write_bytes(mutations.json_of(json.loads(path.read_text()), rnd))
        compiles = ["compile", str(copied), "--output", str(folder / "o"), "--target", "onnxruntime"]
        return command(compiles if which == "onnx" else ["inspect", str(copied)], path)
    repository = Path(shutil.copytree(subject.repository, folder / "repo"))
    version = repository / "subject" / "1"
    path = version / "manifest.json"
    value = json.loads(path.read_text())
    if rnd.random() < 0.5:
        (version / "model.onnx").rename(version / "model.plan")
        value["files"] = {"model.plan": value["files"]["model.onnx"]}
        shape = {"min": [1, 16], "opt": [8, 16], "max": [16, 16]}
        value["details"].update(target="tensorrt", backend="tensorrt", profiles=[{"x": shape}])
        config = repository / "subject" / "config.pbtxt"
        config.write_text(config.read_text().replace('"onnxruntime"', '"tensorrt"'))
    path.write_bytes(mutations.json_of(value, rnd))
    ways = [["validate", str(repository)], ["inspect", str(repository / "subject")]]
    return command(rnd.choice([*ways, ["serve", str(repository), "--print-command"]]), path)
