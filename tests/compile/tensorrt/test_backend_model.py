"""The tensorrt backend's model in this process: what it does when Triton or the GPU fails, which a server cannot show.

TensorRT and CUDA are the stand-ins of test_tensorrt_backend.py; Triton's pb_utils has one here.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

STANDINS = Path(__file__).parents[1] / "standins"
BACKEND = "repo_builder.serve.backends.tensorrt"
# What the stand-ins take the place of, and what has imported it.
REPLACED = ("cuda", "tensorrt", "triton_python_backend_utils", "standin_cudart", "repo_builder.core.device", BACKEND)
ROW = (64, 256)  # 64 kB of fp32: one row is large
_get = ctypes.pythonapi.PyCapsule_GetPointer
_get.restype, _get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


class TritonModelException(Exception):  # noqa: N818 - Triton's name; it comes from no other exception there either
    pass


class Tensor:
    """What the stub's PbTensor does, for host memory."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values, self.managed = name, values, None

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> Tensor:
        made = cls(name, np.empty(0))
        made.managed = _get(capsule, b"dltensor")
        return made

    def is_cpu(self) -> bool:
        return True

    def as_numpy(self) -> np.ndarray:
        return self.values.copy()

    def to_dlpack(self) -> Any:
        if self.values.dtype == object:
            raise TritonModelException("DLPack does not have support for string tensors.")
        return self.values.__dlpack__()


class Sender:
    def __init__(self, fails: bool) -> None:
        self.fails, self.sent = fails, []

    def send(self, response: Any, flags: int) -> None:
        if self.fails:
            raise TritonModelException("Failed to increase the shared memory pool size")
        self.sent.append(response)


class Request:
    def __init__(self, fails: bool = False, **values: np.ndarray) -> None:
        self.tensors = {name: Tensor(name, value) for name, value in values.items()}
        self.sender = Sender(fails)

    def get_response_sender(self) -> Sender:
        return self.sender


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    pb = types.ModuleType("triton_python_backend_utils")
    pb.TritonModelException = TritonModelException
    pb.Tensor = Tensor
    pb.InferenceResponse = lambda tensors=(), error=None: SimpleNamespace(tensors=list(tensors), error=error)

    class TritonError(Exception):
        INTERNAL, INVALID_ARG = 1, 3

    pb.TritonError = TritonError
    pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    pb.Logger = SimpleNamespace(log_warn=print, log_info=print, log_error=print, log_verbose=print)
    pb.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(REPLACED)}
    sys.path.insert(0, str(STANDINS))
    sys.modules["triton_python_backend_utils"] = pb
    try:
        yield importlib.import_module(f"{BACKEND}.model")
    finally:
        sys.path.remove(str(STANDINS))
        for name in [name for name in sys.modules if name.startswith(REPLACED)]:
            replace(name, None)
        for name, module in before.items():
            replace(name, module)


def replace(name: str, module: Any) -> None:
    """Put a module where imports look for it, which is in its package too; None takes it away."""
    package, _, own = name.rpartition(".")
    inside = vars(sys.modules[package]) if package in sys.modules else {}
    for places, key in ((sys.modules, name), (inside, own)):
        if module is None:
            places.pop(key, None)
        else:
            places[key] = module


def engine(inputs: dict[str, list[list[int]]], kind: str = "FLOAT") -> str:
    given = {key: {"dtype": kind, "shape": bounds[2], "profiles": [bounds]} for key, bounds in inputs.items()}
    return json.dumps({"inputs": given, "outputs": {f"twice_{key}": {"dtype": kind, "of": key} for key in inputs}})


@pytest.fixture
def make(model: Any, tmp_path: Path) -> Any:
    made = []

    def start(inputs: dict[str, list[list[int]]], *, batch: int, warmup: tuple[int, ...] = (), **config: Any) -> Any:
        (tmp_path / "1").mkdir(exist_ok=True)
        (tmp_path / "1" / "model.plan").write_text(engine(inputs))
        warm = [
            {"batch_size": str(size), "inputs": {key: {"dims": bounds[2][1:]} for key, bounds in inputs.items()}}
            for size in warmup
        ]
        found = model.TritonPythonModel()
        found.initialize(
            {
                "model_config": json.dumps({"max_batch_size": batch, "model_warmup": warm, **config}),
                "model_repository": str(tmp_path),
                "model_version": "1",
                "model_name": "m",
            }
        )
        made.append(found)
        return found

    return start


def within(seconds: float, work: Any) -> Any:
    """Return what ``work`` returns, or fail where it hangs."""
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return box[0]


def large(rows: int = 1) -> np.ndarray:
    return np.ones((rows, *ROW), np.float32)


BOUNDS = [[1, *ROW], [1, *ROW], [4, *ROW]]
SMALL = [[1, 4], [2, 4], [64, 4]]


def test_the_harness_works(make: Any) -> None:
    found = make({"x": BOUNDS}, batch=4)
    request = Request(x=large())
    assert found.execute([request]) is None
    found.finalize()
    np.testing.assert_array_equal(request.sender.sent[0].tensors[0].values, 2 * large())


def test_a_small_input_beside_a_large_one_travels_along(make: Any) -> None:
    """The batch is answered from behind; its small input is gathered into a set of buffers that nobody else has."""
    found = make({"x": BOUNDS, "y": [[1, 3], [1, 3], [4, 3]]}, batch=4)
    requests = [
        Request(x=number * large(rows), y=np.full((rows, 3), number, np.float32))
        for number, rows in enumerate((1, 2, 1, 3, 1), 1)
    ]
    for together in (requests[:3], requests[3:]):
        assert found.execute(together) is None
    found.finalize()
    for number, request in enumerate(requests, 1):
        (answer,) = request.sender.sent
        assert [np.unique(tensor.values).tolist() for tensor in answer.tensors] == [[2.0 * number], [2.0 * number]]
        assert [len(tensor.values) for tensor in answer.tensors] == [len(request.tensors["y"].values)] * 2


def test_a_send_that_fails_gives_the_buffers_back(make: Any) -> None:
    """Triton has no room for a response (its shared memory is full): the instance must go on."""
    found = make({"x": BOUNDS}, batch=4)
    for _ in range(2):
        assert within(60, lambda: found.execute([Request(fails=True, x=large())])) is None
    good = Request(x=large())
    assert within(60, lambda: found.execute([good])) is None


def test_a_run_that_fails_gives_the_buffers_back(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make({"x": SMALL}, batch=64)
    cuda = sys.modules["cuda.bindings.runtime"]
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "cudaEventSynchronize", lambda event: (cuda.cudaError_t.cudaErrorInvalidValue,))
        for _ in range(2):
            (answer,) = within(60, lambda: found.execute([Request(x=np.ones((1, 4), np.float32))]))
            assert answer.error is not None
    (answer,) = within(60, lambda: found.execute([Request(x=np.ones((1, 4), np.float32))]))
    np.testing.assert_array_equal(answer.tensors[0].values, np.full((1, 4), 2.0))


def test_a_failed_launch_leaves_nothing_running_on_buffers_given_back(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies enqueued before start failed are not waited for: they write over the next batch in the same buffers."""
    found = make({"x": BOUNDS}, batch=4)
    cuda = sys.modules["cuda.bindings.runtime"]
    real, calls = cuda.cudaMemcpyAsync, []

    def second_fails(*args: Any) -> Any:
        calls.append(args)
        return (cuda.cudaError_t.cudaErrorInvalidValue,) if len(calls) == 2 else real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cuda, "cudaMemcpyAsync", second_fails)
        answers = found.execute([Request(x=7 * large()), Request(x=7 * large())])
    for answer in answers:  # each was run again, alone
        np.testing.assert_array_equal(answer.tensors[0].values, 14 * large())
    assert len(calls) > 2, "the failure was met"
    slots = found._engine._slots
    pending = [stream.handle for stream in (found._engine._there,) if cuda._waiting[stream.handle]]
    assert not pending, f"streams {pending} still copy into a set of buffers that was given back (free: {len(slots)})"


def test_exported_memory_outlives_the_tensor_that_was_made_of_it(make: Any, model: Any, monkeypatch: Any) -> None:
    """PbTensor's destructor calls the deleter that stands in the capsule's memory (pb_tensor.cc, DeleteDLPack)."""
    found = make({"x": BOUNDS}, batch=4)
    alive: dict[int, bool] = {}
    order: list[str] = []
    real = model.Exported

    class Told(real):  # type: ignore[valid-type, misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            address = ctypes.addressof(self._managed)
            alive[address] = True
            weakref.finalize(self, alive.__setitem__, address, False)

    class Freed(Tensor):
        def __del__(self) -> None:
            if self.managed is not None:
                order.append("alive" if alive[self.managed] else "memory of the capsule was freed first")

    monkeypatch.setattr(model, "Exported", Told)
    monkeypatch.setattr(model.pb_utils, "Tensor", Freed)
    monkeypatch.setattr(Sender, "send", lambda self, response, flags: None)
    # as when all inputs of the batch came in CUDA shared memory
    start = found._engine.start
    monkeypatch.setattr(found._engine, "start", lambda *args, **given: start(*args, **{**given, "stays": True}))
    assert found.execute([Request(x=large())]) is None
    found.finalize()
    assert order == ["alive"]


def test_a_small_batch_takes_no_graph_of_more_than_four_times_its_size(make: Any) -> None:
    found = make({"x": SMALL}, batch=64, warmup=(64,))
    engine = found._engine
    lane, slot = engine._lanes[0], engine._slots[0]
    assert engine._graphs(lane, slot, ((1, 4),)) is None
    for count in (16, 4, 1):  # the order in which a client may send them
        engine._graphs(lane, slot, ((count, 4),))
    assert engine._graphs(lane, slot, ((1, 4),)) is None, "one sample runs in the graph of 64"


def test_the_group_of_an_instance_is_the_one_of_its_name(model: Any) -> None:
    config = {"instance_group": [{"name": "vgg", "profile": ["0"]}, {"name": "vgg_large", "profile": ["1"]}]}
    assert model.profiles(config, "vgg_large_0") == [1]
    assert model.profiles(config, "vgg_11") == [0]


def test_strings_fail_alone(make: Any) -> None:
    found = make({"x": SMALL}, batch=64)
    text = np.full((20000,), b"a", object).reshape(-1, 4)  # 160 kB of pointers
    answers = found.execute([Request(x=text), Request(x=np.ones((1, 4), np.float32))])
    assert answers[0].error is not None
    np.testing.assert_array_equal(answers[1].tensors[0].values, np.full((1, 4), 2.0))
