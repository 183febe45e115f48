from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from repo_builder import recipes
from repo_builder.compile.onnxruntime import target as target_module
from repo_builder.compile.onnxruntime.target import OnnxRuntimeRunner, OnnxRuntimeTarget, saturation
from repo_builder.core import environment
from repo_builder.core.details import OnnxRuntimeDetails
from repo_builder.core.errors import CompileError


@pytest.mark.parametrize(
    ("machine", "flags", "asked", "expected", "reason"),
    [
        ("x86_64", {"avx2", "avx512_vnni"}, "auto", "none", "the CPU has avx512_vnni"),
        ("x86_64", {"avx2", "avx_vnni"}, "fp32", "none", "the CPU has avx_vnni"),
        ("x86_64", {"avx2"}, "auto", "7 bits", "no VNNI"),
        ("x86_64", {"avx2"}, "fp32", "float", "no VNNI"),
        ("x86_64", {"avx2"}, "int8", "none", "the recipe says so"),
        ("x86_64", set(), "auto", "7 bits", "no VNNI"),
        ("aarch64", set(), "auto", "none", "aarch64 has no saturating"),
    ],
)
def test_the_cpu_decides_about_sums_that_saturate(
    machine: str, flags: set[str], asked: str, expected: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_module.platform, "machine", lambda: machine)
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset(flags))
    decided, why = saturation(asked)
    assert decided == expected
    assert reason in why


def test_the_profile_is_the_cpu_s_or_tensorrt_s() -> None:
    recipe = recipes.load("jsc-tiny", ("compile.onnxruntime.first_layer=int8",))
    assert OnnxRuntimeTarget().placement(recipe) == ("onnxruntime-cpu", "none")
    recipe = recipes.load("jsc-tiny", ("compile.onnxruntime.accelerator=cuda",))
    assert OnnxRuntimeTarget().placement(recipe) == ("tensorrt", "none")


def test_a_runner_takes_any_number_of_samples(quantized: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(quantized, path)
    image = np.random.default_rng(0).normal(0, 1, (131, 3, 8, 8)).astype(np.float32)
    with OnnxRuntimeTarget().runner(path, {}) as run:
        together = run({"image": image})["logits"]
        apart = np.concatenate([run({"image": image[i : i + 1]})["logits"] for i in range(131)])
    assert together.shape == (131, 5)
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_a_file_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(CompileError, match=r"model\.onnx: ONNX Runtime refuses it"):
        OnnxRuntimeRunner(path)


def test_a_provider_that_is_not_here_is_refused(quantized: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(quantized, path)
    details = OnnxRuntimeDetails(max_batch_size=8, accelerator="tensorrt")
    with pytest.raises(CompileError, match="has no TensorrtExecutionProvider"):
        OnnxRuntimeTarget().runner(path, details)
