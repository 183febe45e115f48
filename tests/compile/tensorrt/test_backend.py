"""The tensorrt backend in a real Triton, with stand-ins for TensorRT and CUDA on host memory (standins/).

What is proved here is the backend's own part: gathering, splitting, shapes, errors. What runs on a GPU is in tests/gpu.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from repo_builder import serve
from repo_builder.core.errors import ServeError

STANDINS = Path(__file__).parents[1] / "standins"
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="nvidia-pytriton is not installed"),
]
ROW = (3, 16, 16)  # 3 kB: gathered by the CPU up to 21 rows a request, then taken from where Triton put it
MAX_BATCH = 64


def config(name: str, inputs: dict[str, list[int]], *, batch: int, warmup: tuple[int, ...] = ()) -> str:
    def tensors(kind: str, names: dict[str, list[int]]) -> str:
        rows = ", ".join(f'{{ name: "{key}" data_type: TYPE_FP32 dims: {dims} }}' for key, dims in names.items())
        return f"{kind} [ {rows} ]\n"

    outputs = {f"twice_{key}": dims for key, dims in inputs.items()}
    text = f'name: "{name}"\nbackend: "tensorrt"\nmax_batch_size: {batch}\n'
    text += tensors("input", inputs) + tensors("output", outputs)
    text += "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    text += 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value: { string_value: "no" } }\n'
    if batch:
        text += "dynamic_batching { max_queue_delay_microseconds: 3000 }\n"
    for size in warmup:
        given = " ".join(
            f'inputs {{ key: "{key}" value: {{ data_type: TYPE_FP32 dims: {dims} zero_data: true }} }}'
            for key, dims in inputs.items()
        )
        text += f'model_warmup [ {{ name: "{size}" batch_size: {size} {given} }} ]\n'
    return text


def engine(inputs: dict[str, list[list[int]]]) -> str:
    """Return a stand-in's engine: input → [min, opt, max] of its only profile."""
    given = {key: {"dtype": "FLOAT", "shape": bounds[2], "profiles": [bounds]} for key, bounds in inputs.items()}
    return json.dumps({"inputs": given, "outputs": {f"twice_{key}": {"dtype": "FLOAT", "of": key} for key in inputs}})


def place(repository: Path, name: str, text: str, plan: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(text)
    (repository / name / "1" / "model.plan").write_text(plan)


@pytest.fixture(scope="module")
def in_standins() -> Iterator[None]:
    """Stand in the folder of the stand-ins: the stub looks for modules in its working directory first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(STANDINS)
        yield


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, in_standins: None) -> Iterator[SimpleNamespace]:
    repository = tmp_path_factory.mktemp("repository")
    rows = [[size, *ROW] for size in (1, 8, MAX_BATCH)]
    place(
        repository, "one", config("one", {"x": list(ROW)}, batch=MAX_BATCH, warmup=(1, 4, 16, 32)), engine({"x": rows})
    )
    two = {"a": [-1], "b": [2]}
    bounds = {"a": [[1, 1], [4, 8], [8, 64]], "b": [[1, 2], [4, 2], [8, 2]]}
    place(repository, "two", config("two", two, batch=8), engine(bounds))
    place(repository, "whole", config("whole", {"x": [-1, 5]}, batch=0), engine({"x": [[1, 5], [2, 5], [4, 5]]}))
    log = repository.parent / "triton.log"
    with serve.start(repository, http_port=0, grpc_port=0, metrics_port=0, log=log) as server:
        server.wait_ready(300)
        yield SimpleNamespace(server=server, log=log)
    assert "tensorrt backend: " in log.read_text()


@pytest.fixture
def infer(served: SimpleNamespace) -> Callable[..., dict[str, np.ndarray]]:
    import tritonclient.grpc as grpc

    connection = grpc.InferenceServerClient(served.server.grpc_url)

    def call(model: str, **values: np.ndarray) -> dict[str, np.ndarray]:
        tensors = []
        for name, value in values.items():
            tensor = grpc.InferInput(name, list(value.shape), "FP32")
            tensor.set_data_from_numpy(value)
            tensors.append(tensor)
        result = connection.infer(model, tensors)
        return {name: result.as_numpy(f"twice_{name}") for name in values}

    return call


def values(random: np.random.Generator, *shape: int) -> Any:
    return random.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 16, 17, 21, 22, 40, 64])
def test_any_batch_comes_back_doubled(infer: Callable[..., dict[str, np.ndarray]], count: int) -> None:
    """In a graph of its size, of the next larger one, or none; gathered, or taken from Triton's memory."""
    x = values(np.random.default_rng(count), count, *ROW)
    np.testing.assert_array_equal(infer("one", x=x)["x"], 2 * x)


def test_requests_of_mixed_sizes_keep_their_rows(infer: Callable[..., dict[str, np.ndarray]]) -> None:
    def one(seed: int) -> bool:
        random = np.random.default_rng(seed)
        x = values(random, int(random.integers(1, 30)), *ROW)
        return np.array_equal(infer("one", x=x)["x"], 2 * x)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(300)))


def test_two_inputs_with_a_dynamic_dimension(infer: Callable[..., dict[str, np.ndarray]]) -> None:
    def one(seed: int) -> bool:
        random = np.random.default_rng(seed)
        count, length = int(random.integers(1, 4)), int(random.integers(1, 65))
        a, b = values(random, count, length), values(random, count, 2)
        found = infer("two", a=a, b=b)
        return np.array_equal(found["a"], 2 * a) and np.array_equal(found["b"], 2 * b)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, range(100)))


def test_a_model_without_batching(infer: Callable[..., dict[str, np.ndarray]]) -> None:
    random = np.random.default_rng(0)
    for count in (1, 4):
        x = values(random, count, 5)
        np.testing.assert_array_equal(infer("whole", x=x)["x"], 2 * x)


def test_shapes_beyond_the_profile_fail_alone(infer: Callable[..., dict[str, np.ndarray]]) -> None:
    from tritonclient.utils import InferenceServerException

    random = np.random.default_rng(0)
    good_a, good_b = values(random, 2, 10), values(random, 2, 2)

    def one(number: int) -> bool:
        if number % 2:
            return np.array_equal(infer("two", a=good_a, b=good_b)["a"], 2 * good_a)
        with pytest.raises(InferenceServerException, match="no optimization profile of the engine covers"):
            infer("two", a=values(np.random.default_rng(number), 2, 65), b=good_b)
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, range(60)))
    with pytest.raises(InferenceServerException, match="no optimization profile"):
        infer("whole", x=values(random, 5, 5))


@pytest.mark.usefixtures("in_standins")
def test_a_plan_that_does_not_load_stops_the_model_with_a_reason(tmp_path: Path) -> None:
    place(tmp_path / "repository", "one", config("one", {"x": list(ROW)}, batch=8), "no plan")
    with (
        serve.start(tmp_path / "repository", http_port=0, grpc_port=0, metrics_port=0, log=tmp_path / "log") as server,
        pytest.raises(ServeError, match=r"cannot load .*model\.plan"),
    ):
        server.wait_ready(300)
