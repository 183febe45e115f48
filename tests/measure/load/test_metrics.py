"""The sampler against a metrics port that publishes GPU figures, on a machine that may have none."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from repo_builder.measure.load.metrics import Sampler
from repo_builder.measure.wire.transport import Endpoint

POWER_W, STEP_S = 200.0, 0.3


class Metrics(http.server.BaseHTTPRequestHandler):
    """A GPU that draws 200 W; the server renews its energy counter every 0.3 s."""

    begin = time.monotonic()

    def do_GET(self) -> None:
        steps = int((time.monotonic() - self.begin) / STEP_S)
        labels = '{gpu_uuid="GPU-a"}'
        body = (
            f"nv_cpu_utilization {0.5 + steps % 2 / 1000}\nnv_cpu_memory_used_bytes 1e9\n"
            f"nv_gpu_utilization{labels} 0.25\n"
            f"nv_gpu_memory_used_bytes{labels} 3e9\nnv_gpu_power_usage{labels} 123\n"
            f"nv_energy_consumption{labels} {5000 + steps * STEP_S * POWER_W}\n"
        ).encode()
        self.send_response(200 if self.path == "/metrics" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be silent."""


def place(port: int, prefix: str = "") -> Endpoint:
    return Endpoint(protocol="http", host="127.0.0.1", port=port, prefix=prefix)


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_energy_power_and_utilisation_of_a_load_and_of_rest(port: int) -> None:
    sampler = Sampler(place(port))
    try:
        assert sampler.available
        assert sampler.has_gpus
        sampler.rest(1.2)
        start = time.monotonic_ns()
        time.sleep(1.7)
        end = time.monotonic_ns()
    finally:
        sampler.close()
    found = sampler.over(start, end, inferences=int(1000 * (end - start) / 1e9))
    assert found is not None
    assert found.cpu_utilisation == pytest.approx(0.5, abs=0.001)
    assert found.memory_used_bytes == 1e9
    (gpu,) = found.gpus
    assert (gpu.name, gpu.utilisation, gpu.memory_used_bytes) == ("GPU-a", 0.25, 3e9)
    # the counter's steps are seen up to a reading (0.25 s) late
    assert gpu.power_w == pytest.approx(POWER_W, rel=0.45)
    assert gpu.idle_power_w == pytest.approx(POWER_W, rel=0.6)
    assert gpu.energy_j_per_inference is not None
    assert gpu.power_w is not None
    assert gpu.energy_j_per_inference == pytest.approx(gpu.power_w / 1000, rel=0.01)


def test_power_stands_in_where_the_counter_is_too_slow(port: int) -> None:
    sampler = Sampler(place(port))
    start = time.monotonic_ns()
    time.sleep(0.3)
    sampler.close()
    found = sampler.over(start, time.monotonic_ns(), inferences=100)
    assert found is not None
    assert found.gpus[0].power_w == 123
    assert found.gpus[0].idle_power_w is None
    assert found.gpus[0].energy_j_per_inference is None


def test_a_port_that_has_no_metrics_is_not_available(port: int) -> None:
    for where in (place(port, "/other"), place(9)):
        sampler = Sampler(where)
        assert not sampler.available
        assert sampler.over(0, time.monotonic_ns(), 1) is None
        sampler.close()
