"""What Triton's native onnxruntime backend serves beside plain batches, served by this one, in a real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient import grpc

from repo_builder.core.errors import ServeError
from repo_builder.serve import Server
from repo_builder.serve.backends.onnxruntime.states import States

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def item(name: str, array: np.ndarray) -> grpc.InferInput:
    value = grpc.InferInput(name, list(array.shape), "FP32")
    value.set_data_from_numpy(array)
    return value


def run(
    client: grpc.InferenceServerClient, model: str, number: int, values: list[float], shape: list[int]
) -> list[float]:
    """Send a sequence and return its answers."""
    answers = []
    for place, value in enumerate(values):
        array = np.full(shape, value, np.float32)
        flags = {"sequence_start": place == 0, "sequence_end": place == len(values) - 1}
        result = client.infer(model, [item("x", array)], sequence_id=number, client_timeout=120, **flags)
        answers.append(float(result.as_numpy("y").item()))
    return answers


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        ("controlled", [1, 1], [11, 2, 3, 4]),
        ("stateful", [1, 1], [1, 3, 6, 10]),
        ("oldest", [1, 1], [1, 3, 6, 10]),
        ("initial", [1], [101, 103, 106, 110]),
    ],
)
def test_each_sequence_has_its_controls_and_its_state(
    client: grpc.InferenceServerClient, model: str, shape: list[int], expected: list[float]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: run(client, model, number, [1, 2, 3, 4], shape), range(1, 9)))
    assert answers == [expected] * 8
    assert run(client, model, 1, [1], shape) == expected[:1]  # a number that is used again begins anew


def test_an_input_with_a_value_of_its_own_may_be_left_out(client: grpc.InferenceServerClient) -> None:
    x, b = item("x", np.ones(1, np.float32)), item("b", np.full(1, 3, np.float32))
    assert client.infer("optional", [x]).as_numpy("y").tolist() == [8]
    assert client.infer("optional", [x, b]).as_numpy("y").tolist() == [4]


def test_a_tensor_without_dimensions_is_one_of_one_element(client: grpc.InferenceServerClient) -> None:
    assert client.infer("scalar", [item("x", np.full(1, 4, np.float32))]).as_numpy("y").tolist() == [8]


def test_a_tensor_may_be_empty(client: grpc.InferenceServerClient) -> None:
    assert client.infer("empty", [item("x", np.zeros(0, np.float32))]).as_numpy("y").tolist() == []


STATE = {"input_name": "s", "output_name": "t", "data_type": "TYPE_FP32", "dims": ["2"]}


class Sequence(SimpleNamespace):
    def correlation_id(self) -> int:
        return int(self.number)

    def flags(self) -> int:
        return int(self.flag)


def test_states_of_sequences_that_never_end_are_given_up(tmp_path: Path) -> None:
    config = {"max_batch_size": 0, "sequence_batching": {"state": [STATE], "max_sequence_idle_microseconds": "1"}}
    states = States(config, tmp_path)
    first, second = Sequence(number=1, flag=1), Sequence(number=2, flag=1)
    states.after(first, {"t": np.ones(2)})
    states.after(second, {"t": np.ones(2)})
    assert len(states._kept) == 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"dims": [-1]}, "give it an initial_state"),
        (
            {"initial_state": [{"dims": [2], "data_file": "absent"}]},
            r"absent: holds no TYPE_FP32 \[2\] for the state 's'",
        ),
        ({"initial_state": [{"dims": [2], "data_file": "short"}]}, "cannot reshape"),
    ],
)
def test_a_state_whose_beginning_is_not_known_is_refused(
    tmp_path: Path, state: dict[str, object], message: str
) -> None:
    (tmp_path / "initial_state").mkdir()
    (tmp_path / "initial_state" / "short").write_bytes(b"1234")
    with pytest.raises(ServeError, match=message):
        States({"max_batch_size": 0, "sequence_batching": {"state": [{**STATE, **state}]}}, tmp_path)
