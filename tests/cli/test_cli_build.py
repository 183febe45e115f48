from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from repo_builder import cli
from repo_builder.core.errors import CompileError

FP8 = ("--target", "onnxruntime", "--set", 'quantize.layers=[{ precision = "fp8" }]')


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
        (["build", "jsc-tiny", *FP8], 8, "quantize.layers[0]: ONNX Runtime's CPU provider has no fp8 arithmetic"),
        (["build", "jsc-tiny", *FP8, "--set", "compile.onnxruntime.accelerator=cuda"], 8, "fp8 was never tried"),
        (
            ["build", "jsc-tiny", *FP8, "--set", 'quantize.layers.0.input={calibrator="entropy"}'],
            3,
            "the entropy calibrator is for int8",
        ),
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


@pytest.mark.parametrize(
    ("domain", "kind", "why"),
    [
        ("", "DynamicQuantizeLinear", "int8 with ranges found while it runs"),
        ("ai.onnx.ml", "Scaler", "operators of ai.onnx.ml"),
    ],
)
def test_a_graph_that_no_tensorrt_takes_is_refused_without_a_gpu(
    here: Path, capsys: pytest.CaptureFixture[str], domain: str, kind: str, why: str
) -> None:
    outputs = ["codes", "scale", "zero"] if kind == "DynamicQuantizeLinear" else ["codes"]
    node = helper.make_node(kind, ["x"], outputs, name="culprit", domain=domain)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    made = [helper.make_tensor_value_info("codes", TensorProto.UINT8 if len(outputs) > 1 else 1, ["n", 4])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(helper.make_graph([node], "g", ends, made), opset_imports=opsets), here / "net.onnx")
    np.savez(here / "net.npz", x=np.zeros((8, 4), np.float32))
    (here / "net.toml").write_text(
        'name = "net"\n[model]\nsource = "net.onnx"\ninputs = [{ name = "x", dtype = "fp32", shape = [4] }]\n'
        'outputs = [{ name = "codes", dtype = "fp32", shape = [4] }]\n[data]\nsource = "net.npz"\n'
    )
    assert cli.run(["build", "net.toml", "--target", "tensorrt"]) == CompileError.exit_code
    told = " ".join(capsys.readouterr().err.split())
    assert f"no TensorRT takes this graph: the node 'culprit' ({kind}): {why}" in told
    assert "use --target onnxruntime" in told
    assert not (here / "model_repository").exists()
