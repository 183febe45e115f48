"""Small ONNX models, repositories of them, one Triton that serves them, and a stand-in for CUDA MPS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder import serve
from repo_builder.core import servers
from repo_builder.serve.run import embedded
from tests.conftest import dropped

STANDINS = Path(__file__).parent / "standins"
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def onnx_model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    **initializers: np.ndarray,
) -> Path:
    """Write an ONNX file and return its path."""
    values = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def tensor(name: str, kind: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), list(shape))


def linear(path: Path) -> Path:
    """y[N, 3] = x[N, 4] @ WEIGHT, twice[N, 3] = y + y."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "y"], ["twice"])]
    outputs = [tensor("y", "FLOAT", "N", 3), tensor("twice", "FLOAT", "N", 3)]
    return onnx_model(path, nodes, [tensor("x", "FLOAT", "N", 4)], outputs, w=WEIGHT)


def lookup(path: Path) -> Path:
    """row[N, 1, 3] = TABLE[index[N, 1]]; an index beyond the table is an error while it runs."""
    node = helper.make_node("Gather", ["table", "index"], ["row"], axis=0)
    inputs, outputs = [tensor("index", "INT64", "N", 1)], [tensor("row", "FLOAT", "N", 1, 3)]
    return onnx_model(path, [node], inputs, outputs, table=TABLE)


def flexible(path: Path) -> Path:
    """total[N] = the sum of x[N, L] over L."""
    node = helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0)
    inputs, outputs = [tensor("x", "FLOAT", "N", "L")], [tensor("total", "FLOAT", "N")]
    return onnx_model(path, [node], inputs, outputs, axis=np.array([1], np.int64))


def adding(path: Path, *inputs: str, batch: bool = True, state: bool = False, **defaults: np.ndarray) -> Path:
    """y = the sum of the inputs, [N, 1] each or [1] without batches; with ``state`` also t = y."""
    shape = ["N", 1] if batch else [1]
    nodes = [helper.make_node("Sum", list(inputs), ["y"])]
    nodes += [helper.make_node("Identity", ["y"], ["t"])] if state else []
    outputs = [tensor(name, "FLOAT", *shape) for name in ("y", "t")[: 1 + state]]
    return onnx_model(path, nodes, [tensor(name, "FLOAT", *shape) for name in inputs], outputs, **defaults)


def sequences(repository: Path) -> None:
    """Models with sequence controls, states, optional inputs and tensors without dimensions."""
    one = "data_type: TYPE_FP32 dims: [ 1 ]"
    io = f'input [ {{ name: "x" {one} }} ] output [ {{ name: "y" {one} }} ]'
    cpu = " instance_group [ { kind: KIND_CPU count: 1 } ] "
    state = 'state [ { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: [ 1 ] INITIAL } ]'
    initial = 'initial_state: { name: "i" data_type: TYPE_FP32 dims: [ 1 ] data_file: "hundred" }'
    control = (
        'control_input [ { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 10 ] } ] } ]'
    )
    for name, batching in {
        "controlled": control,
        "stateful": state.replace("INITIAL", ""),
        "oldest": "oldest { max_candidate_sequences: 4 } " + state.replace("INITIAL", ""),
    }.items():
        config(repository / name, f"max_batch_size: 4 {io} {cpu} sequence_batching {{ {batching} }}")
    adding(repository / "controlled" / "1" / "model.onnx", "x", "START")
    adding(repository / "stateful" / "1" / "model.onnx", "x", "s", state=True)
    adding(repository / "oldest" / "1" / "model.onnx", "x", "s", state=True)
    config(repository / "initial", f"{io} {cpu} sequence_batching {{ {state.replace('INITIAL', initial)} }}")
    adding(repository / "initial" / "1" / "model.onnx", "x", "s", batch=False, state=True)
    (repository / "initial" / "initial_state").mkdir()
    (repository / "initial" / "initial_state" / "hundred").write_bytes(np.float32([100]).tobytes())
    optional = '{ name: "b" data_type: TYPE_FP32 dims: [ 1 ] optional: true },'
    config(repository / "optional", f"{io.replace('input [', 'input [ ' + optional, 1)} {cpu}")
    adding(repository / "optional" / "1" / "model.onnx", "x", "b", batch=False, b=np.float32([7]))
    config(repository / "scalar", f"{io} {cpu}")
    node = helper.make_node("Add", ["x", "x"], ["y"])
    onnx_model(repository / "scalar" / "1" / "model.onnx", [node], [tensor("x", "FLOAT")], [tensor("y", "FLOAT")])
    config(repository / "empty", f"{io.replace('dims: [ 1 ]', 'dims: [ -1 ]')} {cpu}")
    node = helper.make_node("Identity", ["x"], ["y"])
    onnx_model(repository / "empty" / "1" / "model.onnx", [node], [tensor("x", "FLOAT", 0)], [tensor("y", "FLOAT", 0)])


KINDS = (
    "FLOAT16",
    "DOUBLE",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "BOOL",
    "STRING",
)


def every_type(path: Path) -> Path:
    """``out_K`` = ``in_K`` for each type K, of shape [2]; batching is off."""
    nodes = [helper.make_node("Identity", [f"in_{kind}"], [f"out_{kind}"]) for kind in KINDS]
    inputs, outputs = ([tensor(f"{side}_{kind}", kind, 2) for kind in KINDS] for side in ("in", "out"))
    return onnx_model(path, nodes, inputs, outputs)


def config(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{text}\n')


LINEAR = """
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }, { name: "twice" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep backend directories and detached servers of these tests away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
        for note in serve.running():  # what a test that failed left running; others would find it
            serve.stop(note)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one model, ``linear``."""
    repository = tmp_path / "repository"
    linear(repository / "linear" / "1" / "model.onnx")
    config(repository / "linear", LINEAR)
    return repository


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """What writes models and configurations."""
    return SimpleNamespace(
        adding=adding,
        linear=linear,
        flexible=flexible,
        every_type=every_type,
        config=config,
        onnx_model=onnx_model,
        LINEAR=LINEAR,
    )


@pytest.fixture(scope="session")
def any_ports() -> dict[str, int]:
    """Arguments of ``serve.start`` that pick free ports."""
    return {"http_port": 0, "grpc_port": 0, "metrics_port": 0}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of ``server``."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="session")
def server(served: Path, tmp_path_factory: pytest.TempPathFactory, any_ports: dict[str, int]) -> Iterator[serve.Server]:
    """A Triton that serves one model of each sort."""
    repository = served
    linear(repository / "linear" / "1" / "model.onnx")
    config(
        repository / "linear",
        """
        max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }, { name: "twice" data_type: TYPE_FP32 dims: [ 3 ] } ]
        instance_group [ { kind: KIND_CPU count: 2 } ]
        dynamic_batching { max_queue_delay_microseconds: 100 }
        parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
        parameters { key: "execution_mode" value: { string_value: "0" } }
        model_warmup [ { name: "one" batch_size: 1
          inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } } ]
        """,
    )
    lookup(repository / "lookup" / "1" / "model.onnx")
    config(
        repository / "lookup",
        """
        max_batch_size: 16
        input [ { name: "index" data_type: TYPE_INT64 dims: [ 1 ] } ]
        output [ { name: "row" data_type: TYPE_FP32 dims: [ 1, 3 ] } ]
        instance_group [ { kind: KIND_CPU count: 1 } ]
        dynamic_batching { preferred_batch_size: [ 16 ] max_queue_delay_microseconds: 300000 }
        """,
    )
    flexible(repository / "flexible" / "1" / "model.onnx")  # no config.pbtxt: all of it is completed
    every_type(repository / "types" / "3" / "model.onnx")
    config(repository / "types", 'name: "types"')
    sequences(repository)
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with dropped(serve.start(repository, runtime="embedded", log=log, **any_ports)) as running:
        running.wait_ready(300)
        yield running


class Cli:
    """``repo-builder serve`` as a process of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        words = [sys.executable, "-m", "repo_builder", "serve", *map(str, arguments)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def told(self) -> dict[str, Any]:
        """Wait until it says where the server is."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        value: dict[str, Any] = json.loads(line)
        return value

    def end(self) -> tuple[int, str]:
        """Wait for its end; return exit code and stderr."""
        errors = self.process.communicate(timeout=300)[1]
        return self.process.returncode, errors


@pytest.fixture
def cli() -> Iterator[Callable[..., Cli]]:
    started: list[Cli] = []

    def run(*arguments: str | Path) -> Cli:
        started.append(Cli(*arguments))
        return started[-1]

    yield run
    for item in started:
        item.process.kill()
        item.process.communicate()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's programs, first on PATH: one that lists a GPU and one that is MPS; return the latter."""
    folder = tmp_path / "driver"
    folder.mkdir()
    programs = {
        "nvidia-smi": "print('Stand-in, 9.0, 1000, 1.0')",
        "nvidia-cuda-mps-control": (STANDINS / "nvidia_cuda_mps_control.py").read_text(encoding="utf-8"),
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!{sys.executable} -IS\n{text}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "nobody"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(embedded, "_has_gpu", lambda: True)  # here: what nvidia-smi says is asked once a process
    return folder / "nvidia-cuda-mps-control"


@pytest.fixture(scope="session")
def soon() -> Callable[..., bool]:
    """What waits until something holds, and returns whether it does."""

    def wait(holds: Callable[[], bool], seconds: float = 120) -> bool:
        deadline = time.monotonic() + seconds
        while not holds() and time.monotonic() < deadline:
            time.sleep(0.02)
        return holds()

    return wait


@pytest.fixture(scope="session")
def group() -> Callable[[int], dict[int, str]]:
    """What lists the processes of a group that run: number → command line."""

    def listed(leader: int) -> dict[int, str]:
        command = ["ps", "-ww", "-o", "pid=,args=", "-g", str(leader)]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        split = (line.split(maxsplit=1) for line in lines)
        return {int(pid): words for pid, words in split if servers.began(int(pid)) is not None}

    return listed
