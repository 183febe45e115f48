"""What every test may use: golden files, a run that has every part, a Triton with models that behave and misbehave."""

from __future__ import annotations

import functools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from hypothesis import settings

from repo_builder import serve
from repo_builder.results import PerfRun, schema

# The same examples in every run, so that a red suite is about a change; `campaign` looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("campaign", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# torch's threads wait by spinning: two workers with two each, on two cores, take many times as long as with one each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that runs `make test &` has its children ignore Ctrl-C, and theirs: tests that send it would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_ROOT = Path(__file__).resolve().parents[1]
# What runs in one worker of pytest-xdist, one after the other, in the order in which it begins. What waits for servers
# and what computes take turns, so that neither cores nor workers are idle.
_TOGETHER = ("tests/serve/run", "modelopt", "triton", "torch.export", "server")
_SHARED = ("server", "triton")  # fixtures of the session that cost seconds
# Libraries whose first use takes seconds of computing, and the files that use them.
_LIBRARIES = {
    "modelopt": (
        "tests/e2e/test_agreement.py", "tests/flows/build/test_finetuning.py", "tests/quantize/finetune/test_graph.py",
        "tests/quantize/placement/test_float8.py", "tests/quantize/repair/test_rounding.py",
        "tests/quantize/test_calibrate.py",
    ),
    "torch.export": ("tests/export/test_capturing.py", "tests/export/test_choosing.py"),
}  # fmt: skip

_HEAD = """import time
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(pb.get_input_tensor_by_name(item, "x").as_numpy()) for item in requests]

    def one(self, x):
"""
_ANSWER = '        return pb.InferenceResponse([pb.Tensor("y", x)])\n'
# What ``moody`` does is said by the last value of the first sample.
_MOODY = """        mood, first = int(x[0, 3]), float(x[0, 0])
        if mood == 1:
            return pb.InferenceResponse(error=pb.TritonError("too large"))
        if mood == 2:
            time.sleep(first)
        if mood == 3:
            x = np.repeat(x, 2, axis=1)
        if mood == 4:
            x = np.where((x > 0.9) & (np.arange(4) < 3), np.nan, x).astype(np.float32)
"""
_BATCHES = "max_batch_size: 8"


def _built(recipe: str) -> str:
    """Return which build a model is, as ``build`` writes it."""
    return " ".join(
        f'parameters {{ key: "repo_builder_{key}" value: {{ string_value: "{value}" }} }}'
        for key, value in (("engine_sha256", "e" * 64), ("build_key", "k"), ("recipe", recipe))
    )


# name → (body of the model, config beyond name, backend and tensors, dims, data type)
MODELS: dict[str, tuple[str, str, str, str]] = {
    "identity": ("", f"{_BATCHES} {_built('identity')}", "4", "TYPE_FP32"),
    "moody": (_MOODY, _BATCHES, "4", "TYPE_FP32"),
    "unbatched": ("", f"max_batch_size: 0 {_built('unbatched')}", "4", "TYPE_FP32"),
    "flexible": ("", _BATCHES, "-1", "TYPE_FP32"),
    "text": ("", _BATCHES, "2", "TYPE_STRING"),
    "batching": ("", f"{_BATCHES} dynamic_batching {{ max_queue_delay_microseconds: 500 }}", "4", "TYPE_FP32"),
    "decoupled": ("", "model_transaction_policy { decoupled: true }", "4", "TYPE_FP32"),
}
_ENSEMBLE = """name: "pair"
platform: "ensemble"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling { step [
  { model_name: "identity" model_version: -1
    input_map { key: "x" value: "x" } output_map { key: "y" value: "middle" } },
  { model_name: "batching" model_version: -1
    input_map { key: "x" value: "middle" } output_map { key: "y" value: "y" } }
] }
"""


def write_model(repository: Path, name: str, *, version: int = 1) -> None:
    """Write a model of the table, or another version of it."""
    body, config, dims, dtype = MODELS[name]
    folder = repository / name
    (folder / str(version)).mkdir(parents=True)
    (folder / str(version) / "model.py").write_text(_HEAD + body + _ANSWER)
    tensor = f"data_type: {dtype} dims: [ {dims} ]"
    (folder / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "python"\n{config}\ninput [ {{ name: "x" {tensor} }} ]\n'
        f'output [ {{ name: "y" {tensor} }} ]\ninstance_group [ {{ kind: KIND_CPU count: 1 }} ]\n'
    )


def start(repository: Path, names: Sequence[str], **ports: int) -> serve.Server:
    """Start a Triton that serves some models and takes orders to load and unload them."""
    free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0} | ports
    log = repository.parent / "triton.log"
    # Triton may wait long for a request whose client has gone; the tests do not.
    options = ("--exit-timeout-secs=3",)
    server = serve.start(repository, runtime="embedded", models=tuple(names), log=log, options=options, **free)
    server.wait_ready(300)
    for _ in range(100):  # Triton is ready before its metrics are
        with suppress(OSError), urlopen(server.metrics_url, timeout=5) as page:  # noqa: S310 - http
            if b"nv_" in page.read():
                break
        time.sleep(0.05)
    return server


@contextmanager
def dropped(server: serve.Server) -> Iterator[serve.Server]:
    """Kill a server in the end: one that ends by itself looks once a second whether its models have, and takes three.

    For tests that are about something else: how servers stop is shown in tests/serve/run.
    """
    try:
        yield server
    finally:
        server.stop(grace_s=0)


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serve.Server]:
    """One server with every model, for tests that leave it as it is."""
    repository = tmp_path_factory.mktemp("measure") / "repository"
    for name in MODELS:
        write_model(repository, name)
    (repository / "pair" / "1").mkdir(parents=True)
    (repository / "pair" / "config.pbtxt").write_text(_ENSEMBLE)
    with dropped(start(repository, [*MODELS, "pair"])) as server:
        yield server


@pytest.fixture
def own_triton(tmp_path: Path) -> Iterator[Callable[..., serve.Server]]:
    """Start servers of the test's own, with the model ``identity``; each is stopped in the end."""
    repository = tmp_path / "repository"
    write_model(repository, "identity")
    started: list[serve.Server] = []

    def starter(**ports: int) -> serve.Server:
        started.append(start(repository, ["identity"], **ports))
        return started[-1]

    yield starter
    for server in started:
        server.stop(grace_s=0)  # see `dropped`


@pytest.fixture(scope="session", autouse=True)
def _short_timings() -> Iterator[None]:
    """Let builds time what they made for a tenth of the time: no test asks how fast it is but on a clock of its own."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError):
            patch.setattr("repo_builder.compile.onnxruntime.speed._SECONDS", 0.025)
            patch.setattr("repo_builder.flows.build.paying._SECONDS", 0.015)
        yield


@pytest.fixture(scope="session")
def perf_run() -> PerfRun:
    return schema.read(Path(__file__).resolve().parent / "goldens" / "perf" / "run.json")


@functools.cache
def _shared(file: str) -> str:
    """Return what the tests of a file share: a library or a costly fixture, what is made for the file, or nothing."""
    for name, files in _LIBRARIES.items():
        if file in files:
            return name
    text = (_ROOT / file).read_text(encoding="utf-8")
    for name in _SHARED:
        asked = re.search(rf"^def (?:test_\w+|client)\([^)]*\b{name}: (?:serve\.)?Server\b", text, re.MULTILINE)
        if asked and f"def {name}(" not in text:
            return name
    if file.startswith("tests/serve/run/"):  # servers of their own that start and end
        return "tests/serve/run"
    return file if 'scope="module"' in text else ""


@pytest.hookimpl(optionalhook=True)  # there where xdist is
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:  # its own types are there only with it
    """Keep together what shares a server or a build.

    xdist's own ``--dist loadgroup`` keeps nothing together in pytest 9, whose items do not take the name it gives.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _shared(nodeid.partition("::")[0]) or nodeid

        def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
            """Forget what is done: xdist counts all that a worker ever had, after every test."""
            super().mark_test_complete(node, item_index, duration)
            scope = self._split_scope(self.registered_collections[node][item_index])
            if all(self.assigned_work[node][scope].values()):
                del self.assigned_work[node][scope]

    return Scheduling(config, log) if config.getvalue("dist") == "loadscope" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker of xdist, start with what takes longest."""
    if hasattr(config, "workerinput"):
        shared = {item: _shared(item.nodeid.partition("::")[0]) for item in items}
        begins = {name: place for place, name in enumerate(_TOGETHER)}
        items.sort(
            key=lambda item: (
                begins.get(shared[item], len(begins)), item.get_closest_marker("slow") is None, not shared[item],
            )
        )  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write tests/goldens anew instead of comparing")


@pytest.fixture
def update_goldens(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written anew."""
    return bool(request.config.getoption("--update-goldens"))
