import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from repo_builder import cli, models
from repo_builder.core.errors import DataError, ModelError, RecipeError

QUICK = ["--set", "train.epochs=2"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_checkpoint_is_written_and_the_last_line_has_both_accuracies(folder, capsys):
    assert cli.run(["train", "jsc-tiny", *QUICK]) == 0
    shown = capsys.readouterr()
    assert models.checkpoint_facts(folder / "checkpoints" / "jsc-tiny.safetensors")["recipe"] == "jsc-tiny"
    assert shown.out.startswith("jsc-tiny: best epoch ")
    assert "validation 0." in shown.out
    assert "test 0." in shown.out
    assert len(shown.out.splitlines()) == 1
    assert "12976 train, 1024 calibration, 2000 validation, 4000 test" in shown.err
    assert "sha256:" in shown.err


def test_json(folder, capsys):
    assert cli.run(["train", "jsc-tiny", *QUICK, "--output", "own/a.safetensors", "--half", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"] == "own/a.safetensors"
    assert (folder / "own" / "a.safetensors").stat().st_size == result["size_bytes"]
    assert result["test"]["samples"] == 4000
    assert len(result["history"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["jcs"], RecipeError.exit_code, "did you mean 'jsc'"),
        (["jsc", "--set", "train.epoch=3"], RecipeError.exit_code, "train.epoch: unknown key 'epoch'"),
        (["jsc", "--set", "data.source=jet"], DataError.exit_code, "did you mean 'jets'"),
        (["jsc", "--resume"], ModelError.exit_code, "there is no interrupted training"),
        (["jsc-tiny", *QUICK, "--output", "file/a.safetensors"], 12, "cannot be written"),
        (["vgg-cifar10", "--data-dir", "nowhere"], DataError.exit_code, "there is no batches.meta.txt"),
        (["jsc", "--device", "tpu"], 2, "'tpu' is not one of 'cpu', 'cuda'"),
    ],
)
def test_what_goes_wrong_is_one_sentence(folder, capsys, arguments, code, message):
    (folder / "file").write_text("in the way")
    assert cli.run(["train", *arguments]) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_ctrl_c_keeps_the_best_and_says_how_to_go_on(folder):
    command = [sys.executable, "-c", "from repo_builder.cli import main; main()", "train", "jsc-toy"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--set", "train.epochs=100000"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            state = folder / "checkpoints" / "jsc-toy.safetensors.resume"
            while not state.exists() and running.poll() is None:
                time.sleep(0.05)
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=600)
        finally:
            running.kill()
    assert running.returncode == 130
    assert "the best so far (epoch" in errors
    assert "--resume goes on" in errors
    assert "Traceback" not in errors
    assert (folder / "checkpoints" / "jsc-toy.safetensors").is_file()
    assert state.is_file()


OWN_NETWORK = """
from torch import nn

def network(classes):
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes))
"""
OWN_RECIPE = """
name = "mine"
[model]
source = "own_cli_network:network"
arguments = { classes = 2 }
inputs = [{ name = "picture", dtype = "fp32", shape = [1, 8, 8] }]
outputs = [{ name = "scores", dtype = "fp32", shape = [2] }]
[data]
source = "pictures"
arguments = { mean = 0.5, std = 0.5 }
[train]
epochs = 30
batch_size = 16
learning_rate = 1e-2
augment = ["shift", "mirror"]
"""


def test_a_users_network_learns_a_users_pictures(folder, capsys):
    images = pytest.importorskip("PIL.Image", reason="a folder of images needs Pillow")
    generator = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(60):
            pixels = generator.normal(level, 40, (12, 9, 3)).clip(0, 255).astype(np.uint8)
            images.fromarray(pixels).save(folder / "pictures" / name / f"{number}.png")
    (folder / "own_cli_network.py").write_text(OWN_NETWORK)
    (folder / "mine.toml").write_text(OWN_RECIPE)
    try:
        assert cli.run(["train", "mine.toml", "--json"]) == 0
    finally:
        sys.modules.pop("own_cli_network", None)
    result = json.loads(capsys.readouterr().out)
    assert result["test"]["samples"] == 24
    assert result["test"]["top1"] > 0.9
