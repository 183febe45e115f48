"""Two instances of a plan share the GPU through CUDA MPS: the same outputs, and nothing left when the server ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from repo_builder.core import servers
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.serve.run import mps

pytestmark = [pytest.mark.server]


def mps_processes() -> set[int]:
    """Every control daemon and server of MPS that runs on this machine, whoever started it."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
        except OSError:
            continue
        if name.startswith("nvidia-cuda-mps") and servers.began(int(process.name)) is not None:
            found.add(int(process.name))
    return found


def soon(holds: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


@pytest.fixture(scope="module")
def built(
    make_artifact: Callable[..., OnnxArtifact],
    place_plan: Callable[..., EngineArtifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """A repository of one plan in two instances, and that plan run here, outside MPS."""
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
    control = mps.find_control()
    if control is None:
        pytest.skip("needs nvidia-cuda-mps-control")
    if mps.running(control):
        pytest.skip("needs a machine on which no MPS runs yet")
    from repo_builder.compile.tensorrt.plan import PlanRunner

    repository = tmp_path_factory.mktemp("repository")
    engine = place_plan(make_artifact("int8", instance_count=2), repository)
    return SimpleNamespace(repository=repository, plan=PlanRunner(engine.model), before=mps_processes())


def start(built: SimpleNamespace, log: Path) -> Any:
    from repo_builder import serve

    return serve.start(
        built.repository, runtime="embedded", http_port=0, grpc_port=0, metrics_port=0, log=log, mps=True
    )


@pytest.fixture(scope="module")
def server(built: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with start(built, tmp_path_factory.mktemp("log") / "triton.log") as running:
        running.wait_ready(120)
        yield running


def expected(built: SimpleNamespace, values: np.ndarray) -> np.ndarray:
    result: np.ndarray = built.plan({"image": values})["logits"]
    return result


def connect(server: Any) -> Any:
    import tritonclient.grpc as grpc

    return grpc.InferenceServerClient(server.grpc_url)


def infer(connection: Any, values: np.ndarray) -> np.ndarray:
    import tritonclient.grpc as grpc

    tensor = grpc.InferInput("image", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    result: np.ndarray = connection.infer("int8", [tensor]).as_numpy("logits")
    return result


def test_instances_at_the_same_time_are_bit_equal_to_the_plan(
    server: Any, built: SimpleNamespace, images: np.ndarray
) -> None:
    whole = np.concatenate([expected(built, images[k : k + 1]) for k in range(len(images))])
    random = np.random.default_rng(8)
    cuts = [(int(first), int(first + random.integers(1, 9))) for first in random.integers(0, 50, 400)]
    connection = connect(server)

    def one(cut: tuple[int, int]) -> bool:
        return np.array_equal(infer(connection, images[slice(*cut)]), whole[slice(*cut)])

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, cuts))


def test_both_instances_are_clients_of_the_server_s_own_mps(server: Any, built: SimpleNamespace) -> None:
    assert server.mps.started
    clients = server.mps.clients(server.pid)
    assert clients is not None
    assert len(clients) >= 2
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in clients]
    assert sum(b"triton_python_backend_stub" in words for words in commands) == 2
    assert len(mps_processes() - built.before) >= 2  # the control daemon and its server


@pytest.mark.filterwarnings("ignore:The cuda:FutureWarning", "ignore:The cuda:DeprecationWarning")
def test_cuda_shared_memory_of_a_client_outside_it(server: Any, built: SimpleNamespace, images: np.ndarray) -> None:
    shared = pytest.importorskip("tritonclient.utils.cuda_shared_memory", reason="needs tritonclient[cuda]")
    import tritonclient.grpc as grpc

    values = np.ascontiguousarray(images[:5])
    right = expected(built, values)
    key = server.note.grpc_headers()  # the administration of shared memory is closed to others
    connection, sizes = connect(server), {"mps-given": values.nbytes, "mps-taken": right.nbytes}
    regions = {name: shared.create_shared_memory_region(name, size, 0) for name, size in sizes.items()}
    try:
        shared.set_shared_memory_region(regions["mps-given"], [values])
        for name, region in regions.items():
            connection.register_cuda_shared_memory(name, shared.get_raw_handle(region), 0, sizes[name], headers=key)
        tensor, output = grpc.InferInput("image", list(values.shape), "FP32"), grpc.InferRequestedOutput("logits")
        tensor.set_shared_memory("mps-given", values.nbytes)
        output.set_shared_memory("mps-taken", right.nbytes)
        for _ in range(20):
            connection.infer("int8", [tensor], outputs=[output])
        found = shared.get_contents_as_numpy(regions["mps-taken"], np.float32, list(right.shape))
        np.testing.assert_array_equal(found, right)
    finally:
        for name, region in regions.items():
            connection.unregister_cuda_shared_memory(name, headers=key)
            shared.destroy_shared_memory_region(region)


@pytest.mark.parametrize("how", ["stop", "kill the leader", "kill tritonserver"])
def test_when_the_server_ends_nothing_of_its_mps_is_left(
    built: SimpleNamespace, images: np.ndarray, tmp_path: Path, how: str
) -> None:
    others = mps_processes()  # the module's own server may still run
    with start(built, tmp_path / "triton.log") as server:
        server.wait_ready(120)
        ours = server.mps.processes()
        assert len(ours) >= 4  # the control daemon, tritonserver, two stubs
        assert len(mps_processes() - others) >= 2  # the control daemon and its server
        np.testing.assert_array_equal(infer(connect(server), images[:3]), expected(built, images[:3]))
        if how == "kill the leader":
            os.kill(server.pid, signal.SIGKILL)
        elif how == "kill tritonserver":
            (triton,) = [
                pid
                for pid in ours
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"tritonserver")
            ]
            os.kill(triton, signal.SIGKILL)
        if how != "stop":
            assert server.wait(30) == -signal.SIGKILL
    assert server.exit_code == (0 if how == "stop" else -signal.SIGKILL)
    assert soon(lambda: mps_processes() <= others), mps_processes() - others
    assert [pid for pid in ours if servers.began(pid) is not None] == []
    assert not server.mps.pipes.parent.exists()
