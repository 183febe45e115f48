from __future__ import annotations

import json
from pathlib import Path

import pytest

from repo_builder import cli


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_build_prints_layers_accuracies_and_the_repository(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", "jsc-tiny", "--target", "onnxruntime", "--set", "quantize.keep=all"]
    assert cli.run(arguments) == 0
    captured = capsys.readouterr()
    for text in ("layers.2", "Linear", "int8", "type=Linear", "exported", "placed", "onnxruntime", "95 % interval"):
        assert text in captured.out
    assert "model repository: model_repository/jsc-tiny" in captured.out
    assert "sha256:" in captured.err
    assert cli.run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["skipped"] == ["export", "compile", "place"]
    assert document["layers"][0]["precision"] == "int8"
    assert Path(document["model_folder"], "config.pbtxt").is_file()
    assert cli.run([*arguments, "--version", "next", "--keep-versions", "2", "--force"]) == 0
    assert sorted(item.name for item in (here / "model_repository/jsc-tiny").iterdir() if item.is_dir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "vvg"], 3, "did you mean 'vgg'"),
        (["build", "jsc-tiny", "--set", "quantise.backend=x"], 3, "quantise: unknown key"),
        (["build", "jsc-tiny", "--set", "nonsense"], 3, "'nonsense' is not key.path=value"),
        (["build", "jsc-tiny", "--set", "quantize.backend=tensorflow"], 3, "tensorflow"),
        (["build", "jsc-tiny", "--set", "quantize.layers.0.name=zzz"], 3, "matches no layer"),
        (["build", "jsc-tiny", "--set", "model.source=nothing"], 5, "there is no architecture 'nothing'"),
        (["build", "jsc-tiny", "--checkpoint", "missing.safetensors"], 5, "missing.safetensors"),
        (["build", "jsc-tiny", "--set", "data.source=missing.npz"], 4, "missing.npz"),
        (["build", "jsc-tiny", "--version", "zero"], 2, "neither replace, next nor a number"),
        (["build", "jsc-tiny", "--target", "tpu"], 2, "tpu"),
        (["build"], 2, "Missing argument"),
    ],
)
def test_bad_input_is_one_sentence_with_its_exit_code(
    arguments: list[str], code: int, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (here / "model_repository").exists()


def test_a_recipe_that_is_not_toml_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.toml").write_text("name = \n")
    assert cli.run(["build", "bad.toml"]) == 3
    assert "bad.toml: is not TOML" in capsys.readouterr().err
