"""The onnxruntime backend in a real Triton: what a client gets, and what a client's mistake costs the others."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from repo_builder.serve import Server

pytestmark = pytest.mark.server
Infer = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def infer(client: grpc.InferenceServerClient) -> Infer:
    def run(model: str, outputs: tuple[str, ...] = (), **arrays: np.ndarray) -> dict[str, Any]:
        inputs = []
        for name, array in arrays.items():
            inputs.append(grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        wanted = [grpc.InferRequestedOutput(name) for name in outputs] or None
        result = client.infer(model, inputs, outputs=wanted, client_timeout=120)
        return {item.name: result.as_numpy(item.name) for item in result.get_response().outputs}

    return run


def directly(path: Path, **arrays: np.ndarray) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, arrays), strict=True))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_outputs_are_those_of_onnx_runtime(infer: Infer, served: Path, batch: int) -> None:
    x = np.random.default_rng(batch).normal(size=(batch, 4)).astype(np.float32)
    expected = directly(served / "linear/1/model.onnx", x=x)
    got = infer("linear", x=x)
    assert sorted(got) == ["twice", "y"]
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_only_the_outputs_that_were_asked_for_come_back(infer: Infer) -> None:
    x = np.ones((2, 4), np.float32)
    assert list(infer("linear", outputs=("twice",), x=x)) == ["twice"]
    assert list(infer("linear", outputs=("y",), x=x)) == ["y"]


def test_requests_that_come_together_are_run_together(
    infer: Infer, client: grpc.InferenceServerClient, served: Path
) -> None:
    sizes = [1, 3, 2, 1, 4, 2, 1, 2]  # 16, the preferred batch size
    requests = [np.random.default_rng(place).integers(0, 4, size=(size, 1)) for place, size in enumerate(sizes)]
    before = executions(client, "lookup")
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda index: infer("lookup", index=index)["row"], requests))
    for index, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer, directly(served / "lookup/1/model.onnx", index=index)["row"])
    assert executions(client, "lookup") - before < len(requests)


def test_a_request_that_fails_fails_alone(infer: Infer, client: grpc.InferenceServerClient, served: Path) -> None:
    good = [np.array([[place % 4]]) for place in range(15)]
    requests = [*good[:7], np.array([[99]]), *good[7:]]
    before = executions(client, "lookup")

    def answer(index: np.ndarray) -> Any:
        try:
            return infer("lookup", index=index)["row"]
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(answer, requests))
    failed = [place for place, item in enumerate(answers) if isinstance(item, Exception)]
    assert failed == [7]
    assert "99" in str(answers[7])
    for index, item in zip(requests, answers, strict=True):
        if index[0, 0] != 99:
            np.testing.assert_array_equal(item, directly(served / "lookup/1/model.onnx", index=index)["row"])
    assert executions(client, "lookup") - before < len(requests)


@pytest.mark.parametrize(
    ("model", "arrays", "message"),
    [
        ("linear", {"x": np.ones((1, 5), np.float32)}, r"\[-1,4\].*\[1,5\]"),
        ("linear", {"x": np.ones((1, 4), np.float64)}, "FP64"),
        ("linear", {"z": np.ones((1, 4), np.float32)}, "z"),
        ("linear", {"x": np.ones((9, 4), np.float32)}, "8"),
        ("unknown", {"x": np.ones((1, 4), np.float32)}, "unknown"),
        ("lookup", {"index": np.array([[-9]])}, "ONNX Runtime: .*-9"),
    ],
)
def test_a_wrong_request_is_refused_and_the_server_goes_on(
    infer: Infer, model: str, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=f"(?s){message}"):
        infer(model, **arrays)
    assert infer("linear", x=np.ones((1, 4), np.float32))["y"].shape == (1, 3)


def test_good_requests_among_many_wrong_ones_are_all_answered(infer: Infer) -> None:
    wrong = [
        {"x": np.ones((1, 3), np.float32)},
        {"x": np.ones((1, 4), np.int8)},
        {"z": np.ones((1, 4), np.float32)},
        {"x": np.ones((1, 4, 1), np.float32)},
    ]

    def ask(place: int) -> Any:
        if place % 2:
            with pytest.raises(InferenceServerException):
                infer("linear", **wrong[place // 2 % len(wrong)])
            return None
        return infer("linear", x=np.full((1, 4), place, np.float32))["y"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(400)))
    unit = infer("linear", x=np.ones((1, 4), np.float32))["y"]
    for place in range(0, 400, 2):
        np.testing.assert_allclose(answers[place], unit * place, rtol=1e-5)


def test_an_unknown_output_is_refused(infer: Infer) -> None:
    with pytest.raises(InferenceServerException, match="nothing"):
        infer("linear", outputs=("nothing",), x=np.ones((1, 4), np.float32))


def test_what_config_pbtxt_leaves_out_is_completed(client: grpc.InferenceServerClient) -> None:
    config = client.get_model_config("flexible", as_json=True)["config"]
    assert config["max_batch_size"] == 4
    assert "dynamic_batching" in config
    (x,), (total,) = config["input"], config["output"]
    assert (x["name"], x["data_type"], x["dims"]) == ("x", "TYPE_FP32", ["-1"])
    assert (total["name"], total["dims"]) == ("total", ["1"])


@pytest.mark.parametrize("length", [1, 7, 1000])
def test_dimensions_may_vary(infer: Infer, length: int) -> None:
    x = np.random.default_rng(0).normal(size=(3, length)).astype(np.float32)
    np.testing.assert_allclose(infer("flexible", x=x)["total"], x.sum(1, keepdims=True), rtol=1e-4, atol=1e-4)


def test_different_lengths_at_a_time_are_kept_apart(infer: Infer) -> None:
    requests = [np.full((1, length), 2, np.float32) for length in (1, 2, 3, 2, 1, 3, 5)]
    with ThreadPoolExecutor(len(requests)) as pool:
        totals = list(pool.map(lambda x: infer("flexible", x=x)["total"].item(), requests))
    assert totals == [2 * x.shape[1] for x in requests]


def test_every_type_passes_through_without_batching(infer: Infer, client: grpc.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("types", as_json=True)
    values = {
        "FP16": np.array([1.5, -2], np.float16),
        "FP64": np.array([1e300, -1]),
        "BOOL": np.array([True, False]),
        "BYTES": np.array(["grüß".encode(), b""], object),
    }
    arrays = {}
    for item in metadata["inputs"]:
        kind = item["datatype"]
        if kind in values:
            arrays[item["name"]] = values[kind]
        else:
            limits = np.iinfo(kind.lower())
            arrays[item["name"]] = np.array([limits.min, limits.max], kind.lower())
    assert len(arrays) == 12
    got = infer("types", **arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name.replace("in_", "out_")], array)


def test_text_that_is_not_utf8_is_that_request_s_error(infer: Infer, client: grpc.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("types", as_json=True)
    arrays = {
        item["name"]: np.zeros(2, np.float16 if item["datatype"] == "FP16" else item["datatype"].lower())
        for item in metadata["inputs"]
        if item["datatype"] not in ("BYTES", "FP64", "BOOL")
    }
    arrays |= {"in_DOUBLE": np.zeros(2), "in_BOOL": np.zeros(2, bool), "in_STRING": np.array([b"\xff", b""], object)}
    with pytest.raises(InferenceServerException, match="utf-8"):
        infer("types", **arrays)


def test_the_newest_version_is_served(client: grpc.InferenceServerClient) -> None:
    assert client.get_model_metadata("types", as_json=True)["versions"] == ["3"]


def test_unloading_ends_every_instance(server: Server, client: grpc.InferenceServerClient, infer: Infer) -> None:
    assert len(stubs(server, "linear_0")) == 2
    with pytest.raises(InferenceServerException, match="restricted"):
        client.unload_model("linear")
    key = server.note.grpc_headers()
    client.unload_model("linear", headers=key)
    deadline = time.monotonic() + 120
    while stubs(server, "linear_0") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert stubs(server, "linear_0") == []
    client.load_model("linear", headers=key)
    assert len(stubs(server, "linear_0")) == 2
    assert infer("linear", x=np.ones((1, 4), np.float32))["y"].shape == (1, 3)


def executions(client: grpc.InferenceServerClient, model: str) -> int:
    (stats,) = client.get_inference_statistics(model, as_json=True)["model_stats"]
    return int(stats.get("execution_count", 0))


def stubs(server: Server, instance: str) -> list[str]:
    listed = subprocess.run(
        ["ps", "-ww", "-o", "args=", "-g", str(server.pid)], capture_output=True, text=True, check=False
    )
    return [line for line in listed.stdout.splitlines() if "triton_python_backend_stub" in line and instance in line]
