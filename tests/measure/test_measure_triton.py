"""Sessions against a real Triton: what is measured, what is refused, and what happens when the server fails."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest

from repo_builder import serve
from repo_builder.core.errors import MeasureError
from repo_builder.measure.load.course import Pace
from repo_builder.measure.load.server_stats import Snapshot
from repo_builder.measure.load.session import Session
from repo_builder.measure.load.windows import LevelStopped
from repo_builder.measure.wire.control import GrpcControl
from repo_builder.measure.wire.made_up import random_samples
from repo_builder.measure.wire.transport import ConnectionLost, Endpoint, ProtocolName
from repo_builder.results import Level, LevelResult

pytestmark = pytest.mark.server
PROTOCOLS: list[ProtocolName] = ["grpc", "http", "grpc-stream"]
QUICK = Pace(warmup_s=0.05, window_s=0.15, window_requests=5, most_windows=3)
LONG = Pace(warmup_s=0.05, window_s=0.3, window_requests=5, until_stable=False)


def endpoint_of(server: serve.Server, protocol: ProtocolName = "grpc") -> Endpoint:
    return Endpoint.parse(server.http_url if protocol == "http" else server.grpc_url, protocol)


@contextmanager
def session(
    server: serve.Server,
    model: str = "identity",
    protocol: ProtocolName = "grpc",
    timeout_s: float = 5.0,
    workers: int = 1,
) -> Iterator[Session]:
    url = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
    with Session(endpoint_of(server, protocol), model, metrics_url=url, timeout_s=timeout_s, workers=workers) as made:
        yield made


REFUSES, SLEEPS, WIDENS, IS_NOT_A_NUMBER = 1, 2, 3, 4


def moods(mood: int, count: int = 2, first: float = 0.0) -> dict[str, np.ndarray]:
    """Samples on which the model ``moody`` does as it is told."""
    return {"x": np.tile(np.array([first, 0, 0, mood], np.float32), (count, 1))}


def numbers(count: int, width: int = 4) -> dict[str, np.ndarray]:
    return {"x": (np.arange(count * width, dtype=np.float32) / (count * width * 2)).reshape(count, width)}


# --- what is measured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_sample_comes_back_in_order(triton: serve.Server, protocol: ProtocolName) -> None:
    samples = numbers(203)
    with session(triton, protocol=protocol) as made:
        assert made.server.name == "triton"
        assert np.array_equal(made.infer(samples)["y"], samples["x"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_level_adds_up(triton: serve.Server, protocol: ProtocolName) -> None:
    with session(triton, protocol=protocol, workers=2) as made:
        found = made.measure(Level(concurrency=4, batch_size=2), numbers(40), QUICK)
    assert found.errors == 0
    assert found.latency is not None
    assert found.requests == found.latency.samples == sum(item.requests for item in found.windows[-3:])
    assert found.infer_per_s == pytest.approx(2 * found.requests / found.seconds)
    # Little's law: what is in flight is rate times latency; the client sends again at once
    assert found.requests_per_s * found.latency.mean_us / 1e6 == pytest.approx(4, rel=0.3)
    (server,) = found.server
    assert server.requests == pytest.approx(found.requests, rel=0.1, abs=20)
    # Triton counts a request's samples when it has run and the request when it is answered: four may be in between
    assert server.inferences == pytest.approx(2 * server.requests, rel=0, abs=2 * 4)
    assert found.network_and_client_us is not None
    assert server.total_us + found.network_and_client_us == pytest.approx(found.latency.mean_us)
    assert found.client is not None
    assert found.client.workers == 2
    assert found.hardware is not None
    assert found.hardware.memory_used_bytes is not None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_system_shared_memory_carries_the_tensors(
    triton: serve.Server, protocol: ProtocolName, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_here: list[str] = []  # other tests make regions of their own meanwhile
    name_one = shared_memory._make_filename
    monkeypatch.setattr(shared_memory, "_make_filename", lambda: made_here.append(name_one()) or made_here[-1])
    with session(triton, protocol=protocol) as made:
        found = made.measure(Level(concurrency=3, batch_size=2, shared_memory="system"), numbers(40), QUICK)
    assert found.requests > 0
    assert made_here
    assert not [name for name in made_here if Path("/dev/shm", name.lstrip("/")).exists()]  # noqa: S108


def test_a_region_that_the_server_still_knows_is_in_nobodys_way(
    triton: serve.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrpcControl, "unregister", lambda *_: None)
    with session(triton) as made:
        for _ in range(2):
            assert made.measure(Level(shared_memory="system"), numbers(8), QUICK).requests


def test_dynamic_batches_show_in_the_histogram(triton: serve.Server) -> None:
    with session(triton, "batching") as made:
        assert made.model.dynamic_batching
        assert made.model.max_queue_delay_us == 500
        found = made.measure(Level(concurrency=6), numbers(40), QUICK)
    sizes = dict(found.server[0].batch_sizes)
    assert max(sizes) > 1
    assert sum(size * runs for size, runs in sizes.items()) == found.server[0].inferences


def test_an_ensemble_shows_what_it_is_made_of(triton: serve.Server) -> None:
    with session(triton, "pair") as made:
        assert made.model.composing == ("identity", "batching")
        found = made.measure(Level(concurrency=2), numbers(40), QUICK)
    assert [item.model for item in found.server] == ["pair", "identity", "batching"]
    assert all(item.requests > 0 for item in found.server)
    pair = found.server[0]
    parts = pair.queue_us + pair.compute_input_us + pair.compute_infer_us + pair.compute_output_us
    assert parts == pytest.approx(pair.total_us, rel=0.1)


@pytest.mark.parametrize(("model", "shapes"), [("unbatched", {}), ("text", {}), ("flexible", {"x": (7,)})])
def test_models_of_other_kinds(triton: serve.Server, model: str, shapes: dict[str, tuple[int, ...]]) -> None:
    with session(triton, model) as made:
        samples = random_samples(made.model, 9, shapes, seed=1)
        answer = made.infer(samples)["y"]
        expected = samples["x"]
        assert np.array_equal(answer, expected)
        assert made.measure(Level(shapes=shapes), samples, QUICK).requests > 0


@pytest.mark.parametrize("mode", ["rate", "poisson"])
def test_a_rate_is_kept(triton: serve.Server, mode: str) -> None:
    with session(triton) as made:
        level = Level(mode=mode, request_rate=200.0, concurrency=16)  # type: ignore[arg-type]
        found = made.measure(level, numbers(40), LONG.for_seconds(1.5))
    assert found.requests_per_s == pytest.approx(200, rel=0.25)
    assert found.latency is not None
    assert found.latency_from_due is not None
    assert found.latency_from_due.mean_us >= found.latency.mean_us


def test_a_server_that_cannot_keep_up_with_the_rate_is_said(triton: serve.Server) -> None:
    """One instance that takes 0.3 s: at 20 requests a second the schedule runs away."""
    with session(triton, "moody") as made:
        level = Level(mode="rate", request_rate=20.0, concurrency=2)
        found = made.measure(level, moods(SLEEPS, first=0.3), Pace(warmup_s=0.0, window_requests=1).for_seconds(2.1))
    assert found.latency is not None
    assert found.latency_from_due is not None
    assert found.latency_from_due.p50_us > 1.3 * found.latency.p50_us
    assert "does not keep up" in found.notes[0]


def test_a_trace_is_replayed_whole(triton: serve.Server, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(str(place * 0.01) for place in range(50)))
    with session(triton) as made:
        found = made.measure(Level(mode="trace", trace=str(path), concurrency=16), numbers(40), QUICK)
    assert found.requests == 50
    assert found.stable is None


def test_a_number_of_requests_ends_the_level(triton: serve.Server) -> None:
    with session(triton) as made:
        found = made.measure(Level(concurrency=2), numbers(40), QUICK.for_requests(300))
    assert 300 <= found.requests < 20_000
    assert len(found.windows) == 3


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_models_that_are_not_there(triton: serve.Server, protocol: ProtocolName) -> None:
    with pytest.raises(MeasureError, match="no model 'identitty' → did you mean 'identity'"):
        Session(endpoint_of(triton, protocol), "identitty", timeout_s=5)
    with pytest.raises(MeasureError, match="decoupled"):
        Session(endpoint_of(triton, protocol), "decoupled", timeout_s=5)


def test_the_wrong_protocol_for_the_port(triton: serve.Server) -> None:
    with pytest.raises(MeasureError, match=r"does not speak HTTP|connection lost"):
        Session(Endpoint.parse(triton.grpc_url, "http"), "identity", timeout_s=5)
    with pytest.raises(MeasureError, match="HTTP's port does not speak gRPC"):
        Session(Endpoint.parse(triton.http_url, "grpc"), "identity", timeout_s=5)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"X": np.zeros((3, 4), np.float32)}, r"takes x fp32\[4\]; the samples hold X"),
        ({"x": np.zeros((3, 5), np.float32)}, r"takes x fp32\[4\]; the samples are fp32\[5\]"),
        ({"x": np.zeros((3, 4), np.float64)}, r"the samples are fp64\[4\]"),
        ({"x": np.zeros((0, 4), np.float32)}, r"hold \[0\] samples"),
    ],
)
def test_samples_that_do_not_fit(triton: serve.Server, samples: dict[str, np.ndarray], message: str) -> None:
    with session(triton) as made:
        with pytest.raises(MeasureError, match=message):
            made.infer(samples)
        with pytest.raises(MeasureError, match=message):
            made.measure(Level(), samples, QUICK)


def test_levels_that_do_not_fit(triton: serve.Server) -> None:
    with session(triton) as made, pytest.raises(MeasureError, match=r"batch 9 is more than .* 8"):
        made.measure(Level(batch_size=9), numbers(9), QUICK)
    with session(triton, "unbatched") as made, pytest.raises(MeasureError, match="takes no batches"):
        made.measure(Level(batch_size=2), numbers(9), QUICK)
    with session(triton, "flexible") as made, pytest.raises(MeasureError, match=r"dynamic .* --shape x:16"):
        random_samples(made.model, 3, {}, seed=0)


def test_metrics_that_are_not_there(triton: serve.Server) -> None:
    with pytest.raises(MeasureError, match="no metrics are to be had"):
        Session(endpoint_of(triton), "identity", metrics_url=triton.http_url, timeout_s=5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_response_of_another_shape_is_never_a_number(triton: serve.Server, protocol: ProtocolName) -> None:
    with session(triton, "moody", protocol) as made:
        with pytest.raises(MeasureError, match=r"holds y fp32\[8, 8\] instead of fp32\[8, 4\]"):
            made.infer(moods(WIDENS, 16))
        stopped = ends_early(made, Level(batch_size=2), moods(WIDENS))
        assert "instead of fp32[2, 4]" in stopped.result.stopped


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_not_a_number_names_the_sample(triton: serve.Server, protocol: ProtocolName) -> None:
    samples = moods(IS_NOT_A_NUMBER, 60)
    samples["x"][41, 0] = 1
    with session(triton, "moody", protocol) as made:
        with pytest.raises(MeasureError, match="the output 'y' of sample 41 is NaN"):
            made.infer(samples)
        stopped = ends_early(made, Level(), moods(IS_NOT_A_NUMBER, first=1))
        assert "NaN or infinite" in stopped.result.stopped


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_refused_request_is_counted_and_never_timed(triton: serve.Server, protocol: ProtocolName) -> None:
    samples = numbers(16)
    samples["x"][4] = moods(REFUSES)["x"][0]
    with session(triton, "moody", protocol) as made:
        found = made.measure(Level(concurrency=2), samples, QUICK)
        assert found.errors > 0
        assert "too large" in next(iter(found.failures))
        assert found.latency is not None
        assert found.latency.samples == found.requests
        with pytest.raises(MeasureError, match=r"refuses samples \d+ to \d+: .*too large"):
            made.infer(moods(REFUSES, 16))


# --- what happens when the server fails -----------------------------------------------------------------------------


def ends_early(
    made: Session, level: Level, samples: dict[str, np.ndarray] | None = None, pace: Pace = LONG
) -> LevelStopped:
    """Measure a level that must end early."""
    with pytest.raises(LevelStopped) as caught:
        made.measure(level, samples or numbers(40), pace)
    assert isinstance(caught.value.cause, MeasureError | KeyboardInterrupt)
    assert caught.value.result.stable is not True
    return caught.value


@contextmanager
def meanwhile(made: Session, act: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread once two windows have been measured."""
    probe, calls = made._probe, iter(range(10**9))
    thread = threading.Thread(target=act)

    def counted() -> Snapshot:
        taken = probe()
        if next(calls) == 2:
            thread.start()
        return taken

    made._probe = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        made._probe = probe  # type: ignore[method-assign]
        if thread.ident is not None:  # it began: what is told is the outcome, not that nothing was done
            thread.join()
    assert thread.ident is not None, "the level ended by itself before two windows had been measured"


def has_a_part(result: LevelResult) -> bool:
    return result.requests > 0 and result.latency is not None and bool(result.windows)


ENDLESS = Pace(warmup_s=0.05, window_s=0.2, window_requests=5, most_windows=1000, tolerance=1e-9)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_is_killed(own_triton: Callable[..., serve.Server], protocol: ProtocolName) -> None:
    server = own_triton()
    with session(server, protocol=protocol) as made, meanwhile(made, lambda: os.kill(server.pid, signal.SIGKILL)):
        stopped = ends_early(made, Level(concurrency=2), pace=ENDLESS)
        assert isinstance(stopped.cause, ConnectionLost)
        assert has_a_part(stopped.result)
        # found by whoever connects first: the workers before the level begins, or who reads the counters as it does
        with pytest.raises((ConnectionLost, LevelStopped), match=r"cannot be reached|connection was lost"):
            made.measure(Level(), numbers(4), QUICK)


def test_a_server_that_is_paused_and_goes_on(own_triton: Callable[..., serve.Server]) -> None:
    server = own_triton()
    try:
        with session(server, timeout_s=0.5) as made:
            with meanwhile(made, lambda: os.kill(server.pid, signal.SIGSTOP)):
                stopped = ends_early(made, Level(concurrency=2, shared_memory="system"), pace=ENDLESS)
            assert "within 0.5 s" in stopped.result.stopped
            assert has_a_part(stopped.result)
            os.kill(server.pid, signal.SIGCONT)
            assert made.measure(Level(), numbers(4), QUICK).requests > 0
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_server_that_is_restarted(own_triton: Callable[..., serve.Server]) -> None:
    server = own_triton()
    ports = {
        "http_port": server.endpoints.http,
        "grpc_port": server.endpoints.grpc,
        "metrics_port": server.endpoints.metrics,
    }

    def restart() -> None:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        own_triton(**ports)

    with session(server) as made, meanwhile(made, restart):
        stopped = ends_early(made, Level(concurrency=2), pace=ENDLESS)
        assert has_a_part(stopped.result)
    with session(server) as made:
        assert made.measure(Level(), numbers(4), QUICK).requests > 0


def order(server: serve.Server, action: str) -> None:
    """Tell the server to load or unload the model."""
    url = f"http://{server.http_url}/v2/repository/models/identity/{action}"
    headers = server.note.http_headers()  # loading and unloading are closed to others
    urllib.request.urlopen(urllib.request.Request(url, data=b"{}", headers=headers), timeout=300).read()


def test_a_model_that_is_loaded_anew_replaced_and_unloaded(
    own_triton: Callable[..., serve.Server], tmp_path: Path
) -> None:
    server = own_triton()
    folder = tmp_path / "repository" / "identity"

    def load_anew() -> None:  # the same version, of another configuration
        path = folder / "config.pbtxt"
        path.write_text(path.read_text() + "dynamic_batching { max_queue_delay_microseconds: 100 }\n")
        order(server, "load")

    def replace() -> None:
        (folder / "2").mkdir()
        (folder / "2" / "model.py").write_text((folder / "1" / "model.py").read_text())
        order(server, "load")

    # Of a new version the counters may tell first, or an answer that bears it.
    for act, said in ((load_anew, "was reloaded or replaced"), (replace, "replaced")):
        with session(server) as made, meanwhile(made, act):
            assert made.model.version == "1"
            stopped = ends_early(made, Level(concurrency=2), pace=ENDLESS)
        assert has_a_part(stopped.result)
        assert said in stopped.result.stopped
    with session(server) as made, meanwhile(made, lambda: order(server, "unload")):
        assert made.model.version == "2"
        stopped = ends_early(made, Level(concurrency=2), pace=ENDLESS)
    assert has_a_part(stopped.result)
    assert "identity" in stopped.result.stopped


def test_a_response_that_never_comes(triton: serve.Server) -> None:
    with session(triton, "moody", timeout_s=0.3) as made:
        waits = moods(SLEEPS, first=0.8)
        assert "within 0.3 s" in ends_early(made, Level(), waits).result.stopped
        with pytest.raises(MeasureError, match=r"no response within 0\.3 s"):
            made.infer(waits)
    time.sleep(1.5)  # until the server has done what it was asked


def test_an_interrupt_keeps_what_there_is(triton: serve.Server) -> None:
    with session(triton) as made, meanwhile(made, lambda: os.kill(os.getpid(), signal.SIGINT)):
        stopped = ends_early(made, Level(concurrency=2), pace=ENDLESS)
        assert isinstance(stopped.cause, KeyboardInterrupt)
        assert stopped.result.stopped == "interrupted"
        assert has_a_part(stopped.result)
        assert made.measure(Level(), numbers(4), QUICK).requests > 0


def test_a_worker_that_is_killed(triton: serve.Server) -> None:
    with session(triton) as made, meanwhile(made, lambda: made._fleet._workers[0]._process.kill()):
        stopped = ends_early(made, Level(concurrency=2), pace=ENDLESS)
        assert "load generator's process has ended" in stopped.result.stopped
        assert has_a_part(stopped.result)


def test_a_file_named_like_a_library_is_in_no_workers_way(
    triton: serve.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "select.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    with session(triton) as made:
        assert made.measure(Level(), numbers(8), QUICK).requests


def test_workers_end_with_the_session(triton: serve.Server) -> None:
    with session(triton, workers=3) as made:
        processes = [worker._process for worker in made._fleet._workers]
        assert all(item.poll() is None for item in processes)
    assert all(item.poll() == 0 for item in processes)
