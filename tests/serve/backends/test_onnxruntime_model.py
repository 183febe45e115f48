"""The onnxruntime backend's own logic, with Triton's Python API stood in for and ONNX Runtime itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from repo_builder.core.errors import ServeError
from repo_builder.serve.backends.onnxruntime import settings, signature
from repo_builder.serve.backends.onnxruntime.signature import Declared

MODEL = Path(settings.__file__).with_name("model.py")


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(Exception):
    INTERNAL, INVALID_ARG = 1, 4

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Request:
    def __init__(self, *outputs: str, **inputs: Any) -> None:
        self._inputs = [Tensor(name, np.asarray(value)) for name, value in inputs.items()]
        self._outputs = list(outputs)

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> set[str]:
        return set(self._outputs)  # Triton's is a set, too


@pytest.fixture(scope="module")
def backend() -> Iterator[ModuleType]:
    utils = ModuleType("triton_python_backend_utils")
    utils.Tensor = Tensor  # type: ignore[attr-defined]
    utils.TritonError = TritonError  # type: ignore[attr-defined]
    utils.Logger = SimpleNamespace(log_verbose=lambda _: None)  # type: ignore[attr-defined]
    utils.InferenceResponse = lambda tensors, error=None: SimpleNamespace(  # type: ignore[attr-defined]
        outputs={item.name(): item.as_numpy() for item in tensors}, error=error
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", utils)
        spec = importlib.util.spec_from_file_location("backend_model", MODEL)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


class Runs:
    """Counts the runs of a session."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.count = 0
        self._session = session

    def run(self, *arguments: Any) -> Any:
        self.count += 1
        return self._session.run(*arguments)


@pytest.fixture
def load(backend: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    def start(write: Callable[[Path], Path], inputs: Any, outputs: Any, batch: int = 8) -> Any:
        write(tmp_path / "1" / "model.onnx")
        config = {"max_batch_size": batch, "input": inputs, "output": outputs}
        instance = backend.TritonPythonModel()
        instance.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(tmp_path),
                "model_version": "1",
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        instance._session = Runs(instance._session)
        return instance

    return start


X = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
Y = {"name": "y", "data_type": "TYPE_FP32", "dims": [3]}
TWICE = {"name": "twice", "data_type": "TYPE_FP32", "dims": [3]}


def test_a_batch_is_one_run_and_each_gets_its_rows(load: Callable[..., Any], make: SimpleNamespace) -> None:
    instance = load(make.linear, [X], [Y, TWICE])
    data = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    wanted = [("y",), ("twice", "y"), ("twice",)]
    requests = [Request(*names, x=data[place : place + 2]) for names, place in zip(wanted, (0, 2, 4), strict=True)]
    responses = instance.execute(requests)
    assert instance._session.count == 1
    whole = instance.execute([Request("y", "twice", x=data)])[0].outputs
    for names, place, item in zip(wanted, (0, 2, 4), responses, strict=True):
        assert set(item.outputs) == set(names)
        for name in names:
            np.testing.assert_array_equal(item.outputs[name], whole[name][place : place + 2])


def test_a_request_alone_is_run_on_the_very_array_it_brought(load: Callable[..., Any], make: SimpleNamespace) -> None:
    instance = load(make.linear, [X], [Y])
    array = np.ones((1, 4), np.float32)
    seen = []
    instance._session.run = lambda names, feed, options: seen.append(feed["x"]) or [array]
    instance.execute([Request("y", x=array)])
    assert seen[0] is array


def test_outputs_that_are_not_a_row_each_are_computed_alone(load: Callable[..., Any], make: SimpleNamespace) -> None:
    instance = load(make.linear, [X], [Y])
    session = instance._session
    sums = {"runs": 0}

    def total(names: Any, feed: Any, options: Any) -> Any:
        sums["runs"] += 1
        return [feed["x"].sum(keepdims=True)[:, :1]]

    session.run = total
    requests = [Request("y", x=np.ones((rows, 4), np.float32)) for rows in (1, 2)]
    first, second = instance.execute(requests)
    assert (first.outputs["y"].item(), second.outputs["y"].item()) == (4, 8)
    assert sums["runs"] == 3


def test_the_one_that_fails_is_found_and_the_others_are_answered(
    load: Callable[..., Any], make: SimpleNamespace
) -> None:
    instance = load(make.linear, [X], [Y])
    run = instance._session._session.run

    def picky(names: Any, feed: Any, options: Any) -> Any:
        if np.isnan(feed["x"]).any():
            raise RuntimeError("not a number")
        return run(names, feed, options)

    instance._session.run = picky
    requests = [Request("y", x=np.full((1, 4), value, np.float32)) for value in (1, np.nan, 3)]
    first, second, third = instance.execute(requests)
    assert (first.error, third.error) == (None, None)
    np.testing.assert_allclose(third.outputs["y"], 3 * first.outputs["y"], rtol=1e-6)
    assert "not a number" in str(second.error)
    assert second.error.code == TritonError.INTERNAL


def test_an_error_of_the_client_is_told_apart(load: Callable[..., Any], make: SimpleNamespace) -> None:
    instance = load(make.linear, [X], [Y])
    (answer,) = instance.execute([Request("y", x=np.ones((1, 4), np.float64))])
    assert answer.error.code == TritonError.INVALID_ARG
    assert str(answer.error) == "the input 'x' is float64, and the model takes float32"


class Broken:
    """A tensor that Triton cannot hand on."""

    def name(self) -> str:
        return "x"

    def as_numpy(self) -> np.ndarray:
        raise RuntimeError("no such memory")


MALFORMED: list[Any] = [
    np.ones(4, np.float32),
    np.ones((), np.float32),
    np.ones((1, 4, 1), np.float32),
    np.ones((1, 5), np.float32),
    np.ones((9, 4), np.float32),
    np.ones((2, 4), np.int64),
    np.array([[b"a"] * 4], object),
    np.ones((0, 3), np.float32),
]


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.integers(-1, len(MALFORMED) + 1), min_size=1, max_size=6))
def test_no_malformed_request_costs_another_its_answer(load: Any, make: SimpleNamespace, kinds: list[int]) -> None:
    """-1 is a good request; the others bring what the model does not take, or what cannot be read."""
    instance = load(make.linear, [X], [Y])
    requests, expected = [], []
    for place, kind in enumerate(kinds):
        good = np.full((1, 4), place, np.float32)
        request = Request("y", x=good if kind < 0 or kind >= len(MALFORMED) else MALFORMED[kind])
        if kind == len(MALFORMED):
            request.inputs = lambda: [Broken()]  # type: ignore[method-assign, list-item, return-value]
        if kind > len(MALFORMED):
            request.inputs = lambda: [Tensor("z", np.ones((1, 4), np.float32))]  # type: ignore[method-assign]
        requests.append(request)
        expected.append(good if kind < 0 else None)
    for answer, good in zip(instance.execute(requests), expected, strict=True):
        assert (answer.error is None) == (good is not None)
        if good is not None:
            weight = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
            np.testing.assert_allclose(answer.outputs["y"], good @ weight, rtol=1e-5)


def test_a_text_that_is_not_utf8_costs_no_other_its_answer(load: Callable[..., Any], make: SimpleNamespace) -> None:
    def echo(path: Path) -> Path:
        node = onnx.helper.make_node("Identity", ["s"], ["t"])
        value = onnx.helper.make_tensor_value_info
        kind = onnx.TensorProto.STRING
        result: Path = make.onnx_model(path, [node], [value("s", kind, ["N", 1])], [value("t", kind, ["N", 1])])
        return result

    text = {"data_type": "TYPE_STRING", "dims": [1]}
    instance = load(echo, [{"name": "s", **text}], [{"name": "t", **text}])
    texts = [b"a", b"\xff", "ü".encode()]
    answers = instance.execute([Request("t", s=np.array([[word]], object)) for word in texts])
    assert [item.error is None for item in answers] == [True, False, True]
    assert answers[2].outputs["t"].tolist() == [["ü"]]


def test_lengths_that_differ_are_runs_of_their_own(load: Callable[..., Any], make: SimpleNamespace) -> None:
    total = {"name": "total", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}
    instance = load(make.flexible, [{**X, "dims": [-1]}], [total])
    requests = [Request("total", x=np.ones((1, length), np.float32)) for length in (2, 3, 2, 3, 5)]
    assert [item.outputs["total"].item() for item in instance.execute(requests)] == [2, 3, 2, 3, 5]
    assert instance._session.count == 3


def test_without_batching_each_request_is_a_run(load: Callable[..., Any], make: SimpleNamespace) -> None:
    whole = [{**X, "dims": [-1, 4]}], [{**Y, "dims": [-1, 3]}]
    instance = load(make.linear, *whole, batch=0)
    assert len(instance.execute([Request("y", x=np.ones((1, 4), np.float32))] * 3)) == 3
    assert instance._session.count == 3


@given(data=st.data())
def test_what_is_gathered_is_what_came(backend: ModuleType, data: st.DataObject) -> None:
    staging = backend.Staging()
    for _ in range(3):  # the buffer is reused, by larger, smaller and other batches
        shape = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
        dtype = data.draw(st.sampled_from([np.float32, np.int8, np.int64, np.bool_]))
        sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
        parts = [data.draw(arrays(dtype, (size, *shape))) for size in sizes]
        gathered = staging.gather(parts)
        assert gathered.flags.c_contiguous
        assert gathered.dtype == dtype
        np.testing.assert_array_equal(gathered, np.concatenate(parts))


def test_the_buffer_is_kept(backend: ModuleType) -> None:
    staging = backend.Staging()
    parts = [np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)]
    first = staging.gather(parts)
    assert np.shares_memory(first, staging.gather(parts))
    assert np.shares_memory(first, staging.gather(parts[:1]))


def parameters(**values: str) -> dict[str, Any]:
    return {"parameters": {key: {"string_value": value} for key, value in values.items()}}


def test_session_options_speak_the_native_backend_s_words() -> None:
    config = parameters(
        intra_op_thread_count="3",
        inter_op_thread_count="2",
        execution_mode="1",
        enable_mem_arena="false",
        enable_mem_pattern="0",
    )
    options = settings.session_options({**config, "optimization": {"graph": {"level": "-1"}}})
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_session_options_left_out_are_the_defaults() -> None:
    options, default = settings.session_options({}), ort.SessionOptions()
    for key in ("intra_op_num_threads", "execution_mode", "graph_optimization_level", "enable_cpu_mem_arena"):
        assert getattr(options, key) == getattr(default, key)


@pytest.mark.parametrize("value", ["two", "-1", "1.5", "70000"])
def test_a_thread_count_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ServeError, match=f"'intra_op_thread_count' is '{value}'"):
        settings.session_options(parameters(intra_op_thread_count=value))
    with pytest.raises(ServeError, match="from 0 to 1"):
        settings.session_options(parameters(execution_mode="2"))


GPU_BOTH = {
    "optimization": {
        "execution_accelerators": {
            "gpu_execution_accelerator": [
                {"name": "tensorrt", "parameters": {"precision_mode": "INT8", "max_workspace_size_bytes": "1"}},
                {"name": "cuda", "parameters": {"cudnn_conv_use_max_workspace": "0"}},
            ]
        }
    }
}


def test_accelerators_are_providers_in_the_native_backend_s_order(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: there)
    config = {**GPU_BOTH, **parameters(gpu_mem_limit="7", cudnn_conv_algo_search="1")}
    assert settings.providers(config, kind="GPU", device="1") == [
        ("TensorrtExecutionProvider", {"trt_max_workspace_size": "1", "trt_int8_enable": "1", "device_id": "1"}),
        (
            "CUDAExecutionProvider",
            {
                "gpu_mem_limit": "7",
                "cudnn_conv_algo_search": "HEURISTIC",
                "cudnn_conv_use_max_workspace": "0",
                "device_id": "1",
            },
        ),
        ("CPUExecutionProvider", {}),
    ]
    assert settings.providers({}, kind="GPU", device="0")[0][0] == "CUDAExecutionProvider"
    assert settings.providers(GPU_BOTH, kind="CPU", device="0") == [settings.CPU]


def test_a_gpu_that_onnx_runtime_cannot_use_is_refused_not_replaced(
    monkeypatch: pytest.MonkeyPatch, make: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(ServeError, match=r"asks for CUDAExecutionProvider.*has only.*CPUExecutionProvider"):
        settings.providers({}, kind="GPU", device="0")
    path = make.linear(tmp_path / "model.onnx")
    real = ort.InferenceSession
    # What onnxruntime-gpu does where CUDA's libraries are missing: it warns and runs on the CPU.
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(ServeError, match=r"asked for CUDAExecutionProvider.*would run on CPUExecutionProvider"):
        settings.open_session(path, {}, [("CUDAExecutionProvider", {}), settings.CPU])


@pytest.mark.parametrize(
    ("accelerators", "message"),
    [
        ({"gpu_execution_accelerator": [{"name": "tensorflow"}]}, "'tensorflow' is none of cuda, tensorrt"),
        ({"cpu_execution_accelerator": [{"name": "cuda"}]}, "'cuda' is none of openvino"),
        (
            {"gpu_execution_accelerator": [{"name": "tensorrt", "parameters": {"precision_mode": "INT4"}}]},
            "precision mode 'INT4'",
        ),
    ],
)
def test_unknown_accelerators_are_refused(accelerators: Any, message: str) -> None:
    with pytest.raises(ServeError, match=message):
        settings.providers({"optimization": {"execution_accelerators": accelerators}}, kind="GPU", device="0")


def test_what_the_model_declares(make: SimpleNamespace, tmp_path: Path) -> None:
    session = ort.InferenceSession(str(make.every_type(tmp_path / "model.onnx")), providers=["CPUExecutionProvider"])
    found = signature.declared(session.get_inputs())
    assert found[0] == Declared("in_FLOAT16", "TYPE_FP16", (2,))
    assert {item.data_type for item in found} == {
        *("TYPE_FP16", "TYPE_FP64", "TYPE_BOOL", "TYPE_STRING"),
        *(f"TYPE_{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)),
    }
    with pytest.raises(ServeError, match=r"'b' is BF16.*--runtime container"):
        signature.declared([SimpleNamespace(name="b", type="tensor(bfloat16)", shape=[])])
    with pytest.raises(ServeError, match=r"'s' is a seq\(tensor\(float\)\)"):
        signature.declared([SimpleNamespace(name="s", type="seq(tensor(float))", shape=[])])


MODEL_X = [Declared("x", "TYPE_FP32", (-1, 4))]


@pytest.mark.parametrize(
    ("configured", "batched"),
    [
        ([X], True),
        ([{**X, "dims": ["4"]}], True),
        ([{**X, "dims": [-1, 4]}], False),
        ([{**X, "dims": [2, 2], "reshape": {"shape": [4]}}], True),
    ],
)
def test_a_configuration_that_fits_is_accepted(configured: Any, batched: bool) -> None:
    signature.check(configured, MODEL_X, batched=batched, side="input")


def test_what_config_pbtxt_cannot_say_in_another_way_is_accepted() -> None:
    signature.check([{**X, "dims": [1]}], [Declared("x", "TYPE_FP32", ())], batched=False, side="input")
    signature.check([{**X, "dims": [-1]}], [Declared("x", "TYPE_FP32", (0,))], batched=False, side="input")
    own = [Declared("b", "TYPE_FP32", (4,))]
    signature.check([X], MODEL_X, optional=own, batched=True, side="input")
    signature.check([{**X, "dims": [-1, 4]}, {**X, "name": "b"}], MODEL_X, optional=own, batched=False, side="input")


@pytest.mark.parametrize(
    ("configured", "model", "batched", "message"),
    [
        ([{**X, "name": "z"}], MODEL_X, True, r"no input 'z' \(it has x\)"),
        ([], MODEL_X, True, "leaves out the input x"),
        ([{**X, "data_type": "TYPE_INT8"}], MODEL_X, True, "is TYPE_INT8 in config.pbtxt and TYPE_FP32"),
        ([{**X, "dims": [-1]}], MODEL_X, True, r"\[-1, -1\] in config.pbtxt and \[-1, 4\]"),
        ([{**X, "dims": [4, 1]}], MODEL_X, True, r"\[-1, 4, 1\]"),
        ([X], [Declared("x", "TYPE_FP32", (1, 4))], True, "fixed shape.*max_batch_size: 0"),
        ([X], [Declared("x", "TYPE_FP32", ())], True, "fixed shape"),
        ([{**X, "allow_ragged_batch": True}], MODEL_X, True, "ragged"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(configured: Any, model: Any, batched: bool, message: str) -> None:
    with pytest.raises(ServeError, match=message):
        signature.check(configured, model, batched=batched, side="input")


def test_outputs_may_be_left_out() -> None:
    model = [Declared("y", "TYPE_FP32", (-1, 3)), Declared("twice", "TYPE_FP32", (-1, 3))]
    signature.check([TWICE], model, batched=True, side="output")


def test_completion_keeps_what_is_there_and_refuses_batches_that_cannot_be() -> None:
    config: dict[str, Any] = {"max_batch_size": 32, "input": [X], "output": []}
    signature.complete(config, MODEL_X, [Declared("score", "TYPE_FP32", (-1,))])
    assert config["max_batch_size"] == 32
    assert config["input"] == [X]
    assert config["output"] == [{"name": "score", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}]
    fixed = [Declared("x", "TYPE_FP32", (1, 4))]
    alone: dict[str, Any] = {"max_batch_size": 0, "input": [], "output": []}
    signature.complete(alone, fixed, [Declared("y", "TYPE_FP32", ())])
    assert alone["input"][0]["dims"] == [1, 4]
    assert alone["output"][0] == {"name": "y", "data_type": "TYPE_FP32", "dims": [1]}
    assert "dynamic_batching" not in alone
    with pytest.raises(ServeError, match="max_batch_size is 8"):
        signature.complete({"max_batch_size": 8, "input": [], "output": []}, fixed, [])
