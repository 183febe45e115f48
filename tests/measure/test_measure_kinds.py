"""Every kind of model that Triton serves, measured on a real one: sequences, streams, odd tensors, queues that shed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from repo_builder import serve
from repo_builder.core.errors import MeasureError
from repo_builder.measure.judge.explain import Facts, explain
from repo_builder.measure.load import input_data
from repo_builder.measure.load.abilities import Asks
from repo_builder.measure.load.course import Pace
from repo_builder.measure.load.session import Session
from repo_builder.measure.wire.made_up import random_samples
from repo_builder.measure.wire.transport import Endpoint, ProtocolName
from repo_builder.results import Level
from tests.conftest import dropped

pytestmark = pytest.mark.server
PROTOCOLS: list[ProtocolName] = ["grpc", "http", "grpc-stream"]
QUICK = Pace(warmup_s=0.05, window_s=0.15, window_requests=5, most_windows=3)
# Behind queue policies and priorities a request waits half a second now and then, whoever sends it: one that comes
# before the last has left its instance does not wake Triton's batcher, which looks twice a second by itself.
FEW = QUICK.for_requests(6)

HEAD = """import time
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self.one(item) for item in requests]

    def get(self, request, name):
        found = pb.get_input_tensor_by_name(request, name)
        return None if found is None else found.as_numpy()

"""
# Refuses what is out of order: a step of a sequence that has not begun, one that begins twice, or lasts too long.
SUMS = """    def one(self, request):
        number, x = request.correlation_id(), self.get(request, "x")
        flags = request.flags()
        starts = bool(flags & pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
        ends = bool(flags & pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
        if starts == (number in self.sums):
            return pb.InferenceResponse(error=pb.TritonError(f"sequence {number} out of order"))
        total, steps = self.sums.pop(number, (0.0, 0))
        total, steps = total + float(x.sum()), steps + 1
        if not ends:
            self.sums[number] = total, steps
        return pb.InferenceResponse([pb.Tensor("y", np.array([[total, steps]], np.float32))])
"""
# Sends as many responses as the first value says, 5 ms apart; then that it was all.
STREAM = """    def execute(self, requests):
        for request in requests:
            sender, count = request.get_response_sender(), int(self.get(request, "x")[0, 0])
            if count < 0:
                sender.send(pb.InferenceResponse(error=pb.TritonError("less than nothing")),
                            flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            for place in range(count):
                time.sleep(0.005)
                sender.send(pb.InferenceResponse([pb.Tensor("y", np.full((1, 2), place, np.float32))]))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
ADDS = """    def one(self, request):
        x, more = self.get(request, "x"), self.get(request, "more")
        return pb.InferenceResponse([pb.Tensor("y", x[:, :2] if more is None else x[:, :2] + more)])
"""
HALVES = """    def one(self, request):
        found = pb.get_input_tensor_by_name(request, "x")
        return pb.InferenceResponse([pb.Tensor.from_dlpack("y", found.to_dlpack())])
"""
SLOW = """    def one(self, request):
        time.sleep(0.02)
        return pb.InferenceResponse([pb.Tensor("y", self.get(request, "x")[:, :2])])
"""
FP32 = ('{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }', '{ name: "y" data_type: TYPE_FP32 dims: [ 2 ] }')
SHEDS = "dynamic_batching { priority_levels: 2 default_priority_level: 2 default_queue_policy { max_queue_size: 2 } }"
# name → (Python, inputs, output, the rest of config.pbtxt)
KINDS: dict[str, tuple[str, str, str, str]] = {
    "sums": (SUMS, *FP32, "max_batch_size: 4 sequence_batching { }"),
    "stream": (STREAM, *FP32, "max_batch_size: 1 model_transaction_policy { decoupled: true }"),
    "adds": (
        ADDS, FP32[0] + ', { name: "more" data_type: TYPE_FP32 dims: [ 2 ] optional: true }', FP32[1],
        "max_batch_size: 4",
    ),
    "halves": (
        HALVES, '{ name: "x" data_type: TYPE_BF16 dims: [ 4 ] }', '{ name: "y" data_type: TYPE_BF16 dims: [ 4 ] }',
        "max_batch_size: 4",
    ),
    "slow": (SLOW, *FP32, f"max_batch_size: 4 {SHEDS}"),
    "words": (
        SLOW.replace("time.sleep(0.02)", "pass").replace("[:, :2]", ""),
        '{ name: "x" data_type: TYPE_STRING dims: [ 3 ] }', '{ name: "y" data_type: TYPE_STRING dims: [ 3 ] }',
        "max_batch_size: 4",
    ),
    "audio": (
        SLOW.replace("time.sleep(0.02)", "pass").replace("[:, :2]", ""),
        '{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }', '{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }',
        "max_batch_size: 0",
    ),
}  # fmt: skip
STEP = (
    'platform: "ensemble" max_batch_size: 4 input [ {0} ] output [ {1} ] ensemble_scheduling {{ '
    'step {{ model_name: "{2}" model_version: -1 '
    'input_map {{ key: "x" value: "x" }} output_map {{ key: "y" value: "y" }} }} }}'
)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serve.Server]:
    repository = tmp_path_factory.mktemp("kinds") / "repository"
    for name, (code, inputs, output, rest) in KINDS.items():
        folder = repository / name
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.py").write_text(HEAD + code)
        (folder / "config.pbtxt").write_text(
            f'backend: "python" input [ {inputs} ] output [ {output} ] instance_group [ {{ kind: KIND_CPU }} ] {rest}'
        )
    for name, inner in (("inner", "slow"), ("outer", "inner")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(STEP.format(*FP32, inner))
    log = repository.parent / "triton.log"
    with dropped(
        serve.start(repository, runtime="embedded", http_port=0, grpc_port=0, metrics_port=0, log=log)
    ) as server:
        server.wait_ready(300)
        yield server


@contextmanager
def session(
    server: serve.Server, model: str, protocol: ProtocolName = "grpc", asks: Asks | None = None
) -> Iterator[Session]:
    url = server.http_url if protocol == "http" else server.grpc_url
    with Session(Endpoint.parse(url, protocol), model, timeout_s=5, asks=asks) as made:
        yield made


def numbers(count: int, first: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": np.full((count, 4), first, np.float32)}


# --- sequences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sequences_begin_and_end_in_order_and_none_meets_another(triton: serve.Server, protocol: ProtocolName) -> None:
    with session(triton, "sums", protocol, Asks(sequence_length=3)) as made:
        for _ in range(2):  # the numbers of the first load are not met again by the second
            found = made.measure(Level(concurrency=4), numbers(5), QUICK)
            assert (found.errors, found.failures) == (0, {})
            assert found.requests > 20


def test_samples_through_a_sequence_model_are_sequences_of_one(triton: serve.Server) -> None:
    with session(triton, "sums") as made:
        assert made.infer({"x": np.arange(12, dtype=np.float32).reshape(3, 4)})["y"].tolist() == [
            [6, 1], [22, 1], [38, 1],
        ]  # fmt: skip


def test_sequences_of_a_file_keep_their_lengths(triton: serve.Server, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"data": [[{"x": [1, 2, 3, 4]}], [{"x": [1, 1, 1, 1]}, {"x": [2, 2, 2, 2]}]]}))
    with session(triton, "sums") as made:
        given = input_data.read(path, made.model, {})
        assert given.streams == (1, 2)
        assert made.measure(Level(concurrency=2), given.samples, QUICK, given.streams).errors == 0


@pytest.mark.parametrize(
    ("model", "protocol", "asks", "level", "words"),
    [
        ("sums", "grpc", None, Level(batch_size=2), "is a sequence model: .* batch 1 only"),
        ("sums", "grpc", None, Level(shared_memory="system"), "is a sequence model"),
        ("slow", "grpc", Asks(sequence_length=4), Level(), "is no sequence model"),
        ("stream", "grpc", None, Level(), "is decoupled: .* --protocol grpc-stream"),
        ("stream", "http", None, Level(), "is decoupled: .* --protocol grpc-stream"),
        ("stream", "grpc-stream", None, Level(shared_memory="system"), "is decoupled"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(
    triton: serve.Server, model: str, protocol: ProtocolName, asks: Asks | None, level: Level, words: str
) -> None:
    with pytest.raises(MeasureError, match=words), session(triton, model, protocol, asks) as made:
        made.measure(level, numbers(4), QUICK)


# --- streams --------------------------------------------------------------------------------------------------------


def test_responses_of_a_decoupled_model_are_counted_and_timed(triton: serve.Server) -> None:
    with session(triton, "stream", "grpc-stream") as made:
        found = made.measure(Level(concurrency=2), numbers(4, first=3), QUICK)
    assert found.errors == 0
    assert found.streaming is not None
    assert found.streaming.responses_per_request == 3
    assert found.streaming.first_response is not None
    assert found.streaming.gap is not None
    assert found.latency is not None
    assert found.streaming.gap.samples == 2 * found.streaming.first_response.samples
    assert found.latency.p50_us > found.streaming.first_response.p50_us + found.streaming.gap.p50_us


def test_requests_without_a_response_are_answered_too(triton: serve.Server) -> None:
    with session(triton, "stream", "grpc-stream") as made:
        found = made.measure(Level(), numbers(4, first=0), QUICK)
    assert found.requests > 0
    assert found.streaming is not None
    assert (found.streaming.responses_per_request, found.streaming.first_response) == (0, None)


def test_a_stream_that_fails_is_a_failure_and_the_next_request_goes_on(triton: serve.Server) -> None:
    samples = {"x": np.array([[2, 0, 0, 0], [-1, 0, 0, 0]], np.float32)}
    with session(triton, "stream", "grpc-stream") as made:
        found = made.measure(Level(), samples, QUICK)
    assert found.requests > 0
    assert found.errors > 0
    assert "less than nothing" in next(iter(found.failures))


# --- tensors --------------------------------------------------------------------------------------------------------


def test_an_optional_input_is_left_out_unless_it_is_given(triton: serve.Server) -> None:
    with session(triton, "adds") as made:
        assert made.model.optional == {"more"}
        made_up = random_samples(made.model, 3, {}, seed=0)
        assert set(made_up) == {"x"}
        assert np.array_equal(made.infer(made_up)["y"], made_up["x"][:, :2])
        both = random_samples(made.model, 3, {"more": (2,)}, seed=0)
        assert np.allclose(made.infer(both)["y"], both["x"][:, :2] + both["more"])
        assert made.measure(Level(concurrency=2), both, QUICK).errors == 0


def test_bf16_is_measured(triton: serve.Server) -> None:
    with session(triton, "halves") as made:
        samples = random_samples(made.model, 3, {}, seed=0)
        found = made.measure(Level(), samples, QUICK)
    assert found.requests > 0
    assert found.errors == 0


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_strings_travel_through_shared_memory(triton: serve.Server, protocol: ProtocolName) -> None:
    with session(triton, "words", protocol) as made:
        samples = random_samples(made.model, 4, {}, seed=0, string_length=100)
        assert {len(item) for item in samples["x"].ravel()} == {100}
        assert np.array_equal(made.infer(samples)["y"], samples["x"])
        assert made.measure(Level(batch_size=2, shared_memory="system"), samples, QUICK).errors == 0


def test_a_first_dimension_counts_samples_only_where_something_says_so(triton: serve.Server) -> None:
    with session(triton, "audio") as made:
        with pytest.raises(MeasureError, match=r"--shape x:16"):
            random_samples(made.model, 3, {}, seed=0)
        whole = made.measure(Level(), random_samples(made.model, 3, {"x": (50,)}, seed=0), QUICK)
        assert whole.infer_per_s == whole.requests_per_s
        counted = made.measure(Level(batch_size=5), {"x": np.ones(20, np.float32)}, QUICK)
        assert counted.infer_per_s == pytest.approx(5 * counted.requests_per_s)


def test_inputs_of_different_shapes_go_one_by_one(triton: serve.Server, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"data": [{"x": [1, 2, 3]}, {"x": {"content": [1, 2], "shape": [2]}}]}))
    with session(triton, "audio") as made:
        given = input_data.read(path, made.model, {})
        assert [item.shape for item in given.samples["x"]] == [(3,), (2,)]
        assert made.measure(Level(), given.samples, QUICK).errors == 0


# --- load shedding, ensembles ---------------------------------------------------------------------------------------


def test_load_that_is_shed_is_counted_apart(triton: serve.Server) -> None:
    with session(triton, "slow") as made:
        found = made.measure(Level(concurrency=16), numbers(4), QUICK)
        assert found.requests > 0
        assert found.refused > 0
        assert found.errors == 0
        assert "the server's queue policy refused" in " ".join(found.notes)
        assert not found.sound
        calm = made.measure(Level(concurrency=1), numbers(4), QUICK)
        assert (calm.refused, calm.errors) == (0, 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_priorities_and_timeouts_go_with_every_request(triton: serve.Server, protocol: ProtocolName) -> None:
    asks = Asks(priority=1, timeout_us=10_000_000)
    with session(triton, "slow", protocol, asks) as made:
        assert made.measure(Level(), numbers(4), FEW).errors == 0
    with session(triton, "slow", protocol, Asks(priority=9)) as made:
        found = made.measure(Level(), numbers(4), FEW)  # a priority beyond the model's levels is its default
        assert found.errors == 0


def test_an_ensemble_in_an_ensemble_adds_up(triton: serve.Server) -> None:
    with session(triton, "outer") as made:
        assert (made.model.composing, made.model.leaves) == (("inner", "slow"), ("slow",))
        found = made.measure(Level(concurrency=2), numbers(4), QUICK)
    entry = found.server[0]
    parts = entry.queue_us + entry.compute_input_us + entry.compute_infer_us + entry.compute_output_us
    assert parts == pytest.approx(entry.total_us, rel=0.2)
    said = explain(found, Facts(model=made.model, engine_us=None, request_bytes=16, protocol="grpc"))
    assert said is not None
    assert sum(item.us for item in said.terms) == pytest.approx(said.mean_latency_us)
    assert "'slow'" in said.suggestion
