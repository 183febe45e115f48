"""What needs a GPU: tensors in CUDA shared memory, and the GPU's own figures where Triton publishes them."""

from __future__ import annotations

import numpy as np
import pytest

from repo_builder import serve
from repo_builder.core import environment
from repo_builder.measure.load.course import Pace
from repo_builder.measure.load.session import Session
from repo_builder.measure.wire.transport import Endpoint, ProtocolName
from repo_builder.results import Level

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.server,
    pytest.mark.skipif(not environment.gpus(), reason="needs an NVIDIA GPU, and nvidia-smi lists none"),
]


def opened(server: serve.Server, protocol: ProtocolName) -> Session:
    url = server.http_url if protocol == "http" else server.grpc_url
    metrics = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
    return Session(Endpoint.parse(url, protocol), "identity", metrics_url=metrics, timeout_s=10)


def samples() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).random((40, 4), dtype=np.float32)}


@pytest.mark.parametrize("protocol", ["grpc", "http", "grpc-stream"])
def test_cuda_shared_memory_carries_the_tensors(triton: serve.Server, protocol: ProtocolName) -> None:
    """The session itself compares what lies in shared memory with what comes inline."""
    pytest.importorskip("cuda")
    with opened(triton, protocol) as made:
        pace = Pace(warmup_s=0.1, window_s=0.3, most_windows=3)
        found = made.measure(Level(concurrency=3, batch_size=2, shared_memory="cuda"), samples(), pace)
    assert found.requests > 0
    assert found.errors == 0


def test_energy_of_a_load(triton: serve.Server) -> None:
    with opened(triton, "grpc") as made:
        if not made.rest(4.5):
            pytest.skip("this Triton publishes no GPU metrics (it needs DCGM)")
        found = made.measure(Level(concurrency=4), samples(), Pace(warmup_s=0.5).for_seconds(9))
    assert found.hardware is not None
    gpu = found.hardware.gpus[0]
    assert gpu.power_w is not None
    assert gpu.idle_power_w is not None
    assert gpu.energy_j_per_inference is not None
    assert gpu.energy_j_per_inference == pytest.approx(gpu.power_w / found.infer_per_s, rel=0.1)
