"""``repo-builder config``: any ONNX file, options, notes on stderr, errors in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from repo_builder import cli
from repo_builder.repository import config


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """An ONNX file that batches and has one dimension that varies."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, "W"]) for name in ("a:b", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["a:b"], ["y"])], "g", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_the_configuration_goes_to_stdout_and_the_reason_to_stderr(
    net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["config", str(net)]) == 0
    captured = capsys.readouterr()
    message = config.parse_text(captured.out, "stdout")
    assert (message.name, message.backend, message.max_batch_size) == ("net", "onnxruntime", 64)
    assert list(message.input[0].dims) == [3, -1]
    assert "the first dimension of every input and output varies" in captured.err


def test_every_option_reaches_the_file(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "repository" / "wide" / "config.pbtxt"
    options = (
        "--name wide --backend python --max-batch-size 8 --dims a:b:3,5 --dims y:3,5 --preferred-batch-size 4 "
        "--preferred-batch-size 8 --max-queue-delay-us 7 --instance-count 2 --instance-kind gpu --warmup 1 "
        "--warmup 8 --response-cache --parameter intra_op_thread_count=2"
    )
    assert cli.run(["config", str(net), *options.split(), "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"wrote {output}" in captured.err
    message = config.parse_text(output.read_text(encoding="utf-8"), "file")
    assert (message.name, message.backend, message.max_batch_size) == ("wide", "python", 8)
    assert (list(message.input[0].dims), list(message.output[0].dims)) == ([3, 5], [3, 5])
    assert list(message.dynamic_batching.preferred_batch_size) == [4, 8]
    assert message.dynamic_batching.max_queue_delay_microseconds == 7
    (group,) = message.instance_group
    assert (group.count, type(group).Kind.Name(group.kind)) == (2, "KIND_GPU")
    assert [item.batch_size for item in message.model_warmup] == [1, 8]
    assert message.response_cache.enable
    assert message.parameters["intra_op_thread_count"].string_value == "2"


def test_dynamic_batching_and_batching_can_be_turned_off(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", str(net), "--no-dynamic-batching"]) == 0
    assert not config.parse_text(capsys.readouterr().out, "stdout").HasField("dynamic_batching")
    assert cli.run(["config", str(net), "--max-batch-size", "0", "--warmup", "1", "--warmup-dims", "a:b:1,3,9"]) == 0
    message = config.parse_text(capsys.readouterr().out, "stdout")
    assert (message.max_batch_size, list(message.input[0].dims)) == (0, [-1, 3, -1])
    assert list(message.model_warmup[0].inputs["a:b"].dims) == [1, 3, 9]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--dims", "z:1"], 9, "has no tensor 'z'"),
        (["--dims", "a:b"], 2, "is not TENSOR:SIZES"),
        (["--warmup-dims", ":3"], 2, "is not TENSOR:SIZES"),
        (["--parameter", "x"], 2, "is not KEY=VALUE"),
        (["--preferred-batch-size", "65"], 9, "preferred batch sizes"),
        (["--warmup", "1"], 9, "name its size during warm-up"),
        (["--instance-count", "0"], 9, "at least one instance"),
        (["--output", "/proc/config.pbtxt"], 12, "cannot be written"),
    ],
)
def test_errors_are_one_sentence(
    net: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert cli.run(["config", str(net), *options]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_neither_verb_imports_torch_or_tensorrt(net: Path) -> None:
    program = (
        "import sys; from repo_builder import cli\n"
        f"assert cli.run(['config', {str(net)!r}]) == 0\n"
        f"assert cli.run(['validate', {str(net.parent)!r}]) == 9\n"
        "assert not {'torch', 'tensorrt'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
