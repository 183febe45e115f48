"""Server statistics, metrics, explanations, the knee, CSV and JSON: pure parts, on made-up runs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.measure.judge import explain
from repo_builder.measure.judge.statistics import summarise
from repo_builder.measure.load import metrics, search, server_stats
from repo_builder.measure.load.metrics import Sample
from repo_builder.measure.load.server_stats import Counters, Snapshot
from repo_builder.measure.wire.model import ServedModel
from repo_builder.report import csv as perf_csv
from repo_builder.results import ClientCost, Hardware, Level, LevelResult, PerfRun, ServerTime, schema

DOCS = Path(__file__).resolve().parents[2] / "docs" / "perf-schema.md"


def entry(version: str, requests: int, batch: int) -> dict[str, object]:
    """One entry of Triton's statistics; gRPC gives the numbers as strings."""
    durations = {
        "queue": 100,
        "compute_input": 10,
        "compute_infer": 500,
        "compute_output": 20,
        "cache_hit": 0,
        "cache_miss": 5,
    }
    return {
        "name": "m",
        "version": version,
        "inference_count": str(requests * batch),
        "execution_count": str(requests),
        "inference_stats": {
            "success": {"count": str(requests), "ns": str(requests * 700_000)},
            **{name: {"count": requests, "ns": requests * us * 1000} for name, us in durations.items()},
        },
        "batch_stats": [{"batch_size": batch, "compute_infer": {"count": str(requests), "ns": "1"}}],
    }


def test_statistics_are_summed_over_versions_and_differenced() -> None:
    before = Snapshot(time_ns=0, counters={"m": server_stats.count([entry("1", 10, 2)])})
    after = Snapshot(time_ns=1, counters={"m": server_stats.count([entry("1", 10, 2), entry("2", 30, 4)])})
    (found,) = server_stats.between(before, after)
    assert (found.requests, found.inferences, found.executions) == (30, 120, 30)
    assert (found.total_us, found.queue_us, found.compute_infer_us, found.cache_us) == (700, 100, 500, 5)
    assert found.batch_sizes == ((4, 30),)
    with pytest.raises(MeasureError, match="reloaded or replaced"):
        server_stats.between(after, before)


def counters(requests: int, *, versions: dict[str, int] | None = None) -> Counters:
    found = server_stats.count([entry("1", requests, 1)])
    return found if versions is None else dataclasses.replace(found, versions=versions)


def edge(requests: int, seconds: float, *, slack_ms: float = 0.0, **more: Any) -> Snapshot:
    found = {"m": counters(requests, **more)}
    return Snapshot(time_ns=int(seconds * 1e9), counters=found, slack_ns=int(slack_ms * 1e6))


@pytest.mark.parametrize(
    ("before", "after", "ours", "anew"),
    [
        (edge(1000, 0), edge(2000, 1), 1000, False),
        (edge(1000, 0), edge(2000, 1), 1004, False),  # in flight at an edge
        (edge(1000, 0), edge(900, 1), 1000, True),  # counters fell
        (edge(1000, 0), edge(1300, 1), 1400, True),  # they fell, and have grown again beyond what they were
        (edge(10, 0), edge(600, 1), 1000, True),
        (edge(10, 0), edge(960, 1, slack_ms=50), 1000, False),  # the server was slow to tell
        (edge(100_000, 0), edge(100_300, 1), 1000, False),  # one of several servers behind an address
        (edge(1000, 0), edge(3000, 1), 1000, False),  # others use it, too
        (edge(1000, 0, versions={"1": 1000}), edge(2000, 1, versions={"2": 2000}), 1000, True),
        (edge(1000, 0, versions={"1": 1000}), edge(2000, 1, versions={"1": 5, "2": 1995}), 1000, True),
    ],
)
def test_a_model_that_is_loaded_anew_is_noticed_at_the_next_edge(
    before: Snapshot, after: Snapshot, ours: int, anew: bool
) -> None:
    if anew:
        with pytest.raises(MeasureError, match="reloaded or replaced"):
            server_stats.require_same(before, after, ours, 4)
    else:
        server_stats.require_same(before, after, ours, 4)


def test_what_is_answered_while_counters_are_read_may_stand_on_either_side() -> None:
    """On a machine that stalls a burst is answered then, which says nothing of the model."""
    before, after = edge(10, 0), edge(600, 1)
    with pytest.raises(MeasureError, match="reloaded or replaced"):
        server_stats.require_same(before, after, 1000, 4)
    server_stats.require_same(before, after, 1000, 4, near=300)


def test_queues_inside_ensembles_are_those_of_the_leaves_only() -> None:
    def of(requests: int, name: str) -> Counters:
        queue = 0 if name == "top" else requests * 100_000
        return dataclasses.replace(counters(requests), parts_ns=(queue, 0, 0, 0, 0, 0))

    def snapshot(requests: int) -> Snapshot:
        found = {name: of(requests, name) for name in ("top", "inner", "leaf")}
        return Snapshot(time_ns=0, counters=found, leaves=("leaf",))

    top, *_ = server_stats.between(snapshot(0), snapshot(10))
    assert top.queue_us == 100


METRICS = """# HELP nv_cpu_utilization CPU
nv_cpu_utilization 0.25
nv_cpu_memory_used_bytes 5e+08
nv_inference_count{model="vgg",version="1"} 7
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5
nv_gpu_power_usage{gpu_uuid="GPU-1"} 300
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} NaN
nv_energy_consumption{gpu_uuid="GPU-1"} 1234.5
"""


def test_what_the_driver_does_not_tell_is_no_zero() -> None:
    """Triton writes 0 for what DCGM cannot read; an idle GPU's utilisation is a 0 that was measured."""
    text = (
        'nv_gpu_utilization{gpu_uuid="GPU-1"} 0.000000\nnv_gpu_power_usage{gpu_uuid="GPU-1"} 0.000000\n'
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 0.000000\nnv_energy_consumption{gpu_uuid="GPU-1"} 0.000000\n'
    )
    assert metrics.parse(text) == {("nv_gpu_utilization", "GPU-1"): 0.0}


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([0.2, 0.2, 0.9, 0.7], 0.8),  # the first of the load was read before it was renewed
        ([0.2, 0.2, 0.2], None),  # never renewed: nothing is known of the load
        ([0.2, 0.9, 0.9, 0.6], 0.8),
        ([1.0, 1.0, 1.0], 1.0),  # every core busy, before and during
    ],
)
def test_cpu_utilisation_of_before_the_load_is_not_counted(readings: list[float], expected: float | None) -> None:
    sampler = metrics.Sampler.__new__(metrics.Sampler)
    sampler._samples = [Sample(at, {("nv_cpu_utilization", ""): value}) for at, value in enumerate(readings)]
    sampler._idle = None
    found = sampler.over(1, len(readings), inferences=10)
    assert found is not None
    assert found.cpu_utilisation == (expected if expected is None else pytest.approx(expected))


def test_metrics_are_read_from_prometheus_text() -> None:
    assert metrics.parse(METRICS) == {
        ("nv_cpu_utilization", ""): 0.25,
        ("nv_cpu_memory_used_bytes", ""): 5e8,
        ("nv_gpu_utilization", "GPU-1"): 0.5,
        ("nv_gpu_power_usage", "GPU-1"): 300,
        ("nv_energy_consumption", "GPU-1"): 1234.5,
    }


def energy_samples(power_w: float, every_s: float, until_s: float) -> list[Sample]:
    """A counter that the server renews every ``every_s``, read four times a second."""
    key = ("nv_energy_consumption", "G")
    times = np.arange(0, until_s, 0.25)
    return [Sample(int(at * 1e9), {key: 1000 + power_w * every_s * (at // every_s)}) for at in times]


def test_energy_is_read_between_the_counters_own_steps() -> None:
    """Over 7 s of a counter that steps every 2 s, the plain difference would be off by up to a step."""
    assert metrics.energy_power(energy_samples(250, 2, 7), "G") == pytest.approx(250)
    assert metrics.energy_power(energy_samples(250, 2, 5), "G") == pytest.approx(250)
    assert metrics.energy_power(energy_samples(250, 2, 3), "G") is None  # one step only: nothing to divide by
    assert metrics.energy_power([], "G") is None


def served(**changes: object) -> ServedModel:
    spec = TensorSpec(name="x", dtype=DType.FP32, shape=(4,))
    values: dict[str, object] = {
        "name": "m", "version": "1", "backend": "onnxruntime", "inputs": (spec,), "outputs": (spec,),
        "max_batch_size": 64, "batch_axis": True, "dynamic_batching": True, "max_queue_delay_us": 100,
    }  # fmt: skip
    return ServedModel(**(values | changes))  # type: ignore[arg-type]


def level_result(
    *, mean_us: float = 2000, load: Level | None = None, rate: float = 1000, cpu: float | None = 0.95, **server: float
) -> LevelResult:
    """A level whose mean latency and server times are as given."""
    times = {
        "queue_us": 10.0,
        "compute_input_us": 10.0,
        "compute_infer_us": 10.0,
        "compute_output_us": 10.0,
        "cache_us": 0.0,
    }
    counts = {"requests": 100, "inferences": 100, "executions": 100}
    whole = sum(value for key, value in {**times, **server}.items() if key in times)
    inside = ServerTime(model="m", **{"total_us": whole, **counts, **times, **server})  # type: ignore[arg-type]
    latency = summarise(np.full(100, mean_us * 1000))
    return LevelResult(
        level=load or Level(concurrency=4),
        stable=True,
        windows=(),
        merged=3,
        seconds=3,
        requests=100,
        errors=0,
        requests_per_s=rate,
        infer_per_s=rate,
        latency=latency,
        latency_sample_us=(1.0, 2.0),
        server=(inside,),
        network_and_client_us=300,
        client=ClientCost(workers=1, cpu_us_per_request=50, cpu_share=0.1, lag_p50_us=1, lag_p99_us=2, limited=False),
        hardware=Hardware(cpu_utilisation=cpu) if cpu is not None else None,
    )


def explained(result: LevelResult, **facts: object) -> tuple[str, str]:
    values: dict[str, object] = {"model": served(), "engine_us": None, "request_bytes": 1000, "protocol": "grpc"}
    found = explain.explain(result, explain.Facts(**(values | facts)))  # type: ignore[arg-type]
    assert found is not None
    assert sum(item.us for item in found.terms) == pytest.approx(found.mean_latency_us)
    assert sum(item.share for item in found.terms) == pytest.approx(1)
    assert found.largest == max(found.terms, key=lambda item: item.us).name
    return found.largest, found.suggestion


@pytest.mark.parametrize(
    ("server", "facts", "largest", "words"),
    [
        ({"queue_us": 1500}, {"model": served(dynamic_batching=False)}, "queue", "1500 µs .* of 1.0: turn on dynamic"),
        ({"queue_us": 1500}, {"model": served(max_queue_delay_us=2000)}, "queue", "lower .* .now 2000 µs"),
        ({"queue_us": 1500}, {}, "queue", "4 samples are in flight: a larger preferred batch"),
        ({"queue_us": 1500, "inferences": 400}, {}, "queue", "server is saturated; less than 4"),
        ({"compute_infer_us": 1500}, {}, "compute", "1500 µs for batches of 1.0, 1500 µs a sample: larger batches"),
        ({"compute_infer_us": 1500, "inferences": 6400}, {}, "compute", "batches are full"),
        ({"compute_infer_us": 1500}, {"engine_us": 1400.0}, "engine", "running the model takes 1500"),
        ({"compute_infer_us": 1500}, {"engine_us": 200.0}, "backend", "1500 µs where the engine alone takes 200 µs"),
        ({"compute_output_us": 1500}, {}, "input and output", "1510 µs copying 1.0 kB .* --shared-memory system"),
        ({"cache_us": 1500}, {}, "cache", "response_cache = false"),
        ({}, {"request_bytes": 10**6}, "network", "300 µs go by outside the model while 1000.0 kB"),
        ({}, {}, "network", "only 1.0 kB: more samples a request, or --protocol http"),
        ({}, {"protocol": "http"}, "network", "only 1.0 kB: more samples a request$"),
    ],
)  # fmt: skip
def test_the_largest_part_is_named_with_what_follows_from_it(
    server: dict[str, float], facts: dict[str, object], largest: str, words: str
) -> None:
    found = explained(level_result(**server), **facts)
    assert found[0] == largest
    assert re.search(words, found[1]), found[1]


def test_a_native_backend_is_not_advised_where_it_serves() -> None:
    _, words = explained(level_result(compute_infer_us=1500), engine_us=200.0, model=served(native=True))
    assert "native backend" not in words


def test_what_no_statistic_holds_is_called_unexplained() -> None:
    largest, words = explained(level_result(total_us=1800.0))
    assert largest == "unexplained"
    assert "in none of the server's statistics" in words


def test_steps_that_run_side_by_side_do_not_take_more_than_the_whole() -> None:
    found = explain.explain(
        level_result(compute_infer_us=3000, total_us=1500.0),
        explain.Facts(model=served(), engine_us=None, request_bytes=1, protocol="grpc"),
    )
    assert found is not None
    assert sum(item.us for item in found.terms) == pytest.approx(found.mean_latency_us)
    assert all(item.us >= 0 for item in found.terms)


@pytest.mark.parametrize("slow", ["a", "b"])
def test_an_ensembles_largest_part_is_of_a_model_inside(slow: str) -> None:
    result = level_result(queue_us=1500)
    times = [
        dataclasses.replace(result.server[0], model=name, queue_us=1400.0 if name == slow else 100.0) for name in "ab"
    ]
    whole = served(name="m", parts=(served(name="a"), served(name="b", dynamic_batching=False)), dynamic_batching=False)
    largest, words = explained(dataclasses.replace(result, server=(*result.server, *times)), model=whole)
    assert largest == "queue"
    assert words.startswith(f"most of it in '{slow}': requests wait 1400 µs")
    assert ("turn on dynamic batching" in words) == (slow == "b")


def test_an_idle_processor_asks_for_another_instance() -> None:
    _, words = explained(level_result(queue_us=1500, inferences=400, cpu=0.4))
    assert "the CPU is 40% busy: another instance (repository.instance_count = 2)" in words


@pytest.mark.parametrize("spent", [{}, {"compute_output_us": 1500.0}])
def test_shared_memory_is_not_advised_where_it_is_used(spent: dict[str, float]) -> None:
    shared = level_result(load=Level(concurrency=4, shared_memory="system"), **spent)
    assert "--shared-memory system" not in explained(shared, request_bytes=10**6)[1]
    assert "more samples a request" in explained(shared, request_bytes=10**6)[1]


def test_a_lone_request_waits_for_the_batcher() -> None:
    alone = level_result(queue_us=1500, load=Level(concurrency=1))
    assert "lower repository.max_queue_delay_us (now 100 µs)" in explained(alone)[1]
    assert "the scheduler's own time" in explained(alone, model=served(max_queue_delay_us=0))[1]


def test_nothing_is_explained_without_statistics() -> None:
    bare = dataclasses.replace(level_result(), server=())
    assert (
        explain.explain(bare, explain.Facts(model=served(), engine_us=None, request_bytes=1, protocol="grpc")) is None
    )


# --- the knee -------------------------------------------------------------------------------------------------------


def searched(limit_ms: float, *, saturates: int) -> tuple[int | None, list[int]]:
    """Search on a server whose throughput saturates and whose latency then grows with concurrency."""
    tried: list[int] = []

    def measure(concurrency: int) -> LevelResult:
        tried.append(concurrency)
        rate = 1000 * min(concurrency, saturates)
        return level_result(mean_us=concurrency / rate * 1e6, rate=rate, load=Level(concurrency=concurrency))

    return search.knee(measure, most_p99_ms=limit_ms), tried


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
def test_the_knee_is_the_highest_throughput_under_the_limit(limit: int) -> None:
    best, tried = searched(limit, saturates=10**6)  # latency is 1 ms at any concurrency
    assert best == max(tried)
    best, tried = searched(limit, saturates=8)  # then latency is concurrency / 8 ms
    assert best is not None
    assert best <= 8 * limit
    assert best >= 8
    assert len(tried) < 20


def test_no_knee_where_one_request_is_too_slow() -> None:
    assert searched(0.5, saturates=4) == (None, [1])


# --- files ----------------------------------------------------------------------------------------------------------


def test_csv_has_perf_analyzers_columns(perf_run: PerfRun) -> None:
    closed = tuple(item for item in perf_run.levels if item.level.mode == "concurrency")
    rows = list(csv.DictReader(io.StringIO(perf_csv.render(dataclasses.replace(perf_run, levels=closed)))))
    assert list(rows[0])[:14] == [
        "Concurrency", "Inferences/Second", "Client Send", "Network+Server Send/Recv", "Server Queue",
        "Server Compute Input", "Server Compute Infer", "Server Compute Output", "Client Recv", "p50 latency",
        "p90 latency", "p95 latency", "p99 latency", "Avg latency",
    ]  # fmt: skip
    first, level = rows[0], perf_run.levels[0]
    assert level.latency is not None
    assert float(first["Inferences/Second"]) == pytest.approx(level.infer_per_s, rel=1e-5)
    assert int(first["p99 latency"]) == round(level.latency.p99_us)
    assert int(first["Server Compute Infer"]) == round(level.server[0].compute_infer_us)
    assert first["Concurrency"] == str(level.level.concurrency)


def test_csv_of_an_open_loop_names_the_rate(perf_run: PerfRun) -> None:
    level = dataclasses.replace(perf_run.levels[0], level=Level(mode="rate", request_rate=150.0, concurrency=64))
    rows = list(csv.DictReader(io.StringIO(perf_csv.render(dataclasses.replace(perf_run, levels=(level,))))))
    assert rows[0]["Request Rate"] == "150"


def test_csv_of_a_level_without_an_answer_has_empty_cells(perf_run: PerfRun) -> None:
    level = dataclasses.replace(perf_run.levels[0], latency=None, server=(), network_and_client_us=None, requests=0)
    row = next(csv.DictReader(io.StringIO(perf_csv.render(dataclasses.replace(perf_run, levels=(level,))))))
    assert row["p50 latency"] == row["Server Queue"] == ""


def test_json_comes_back_as_the_same_run(perf_run: PerfRun, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(schema.dumps(perf_run), encoding="utf-8")
    assert schema.read(path) == perf_run
    document = json.loads(path.read_text())
    assert (document["schema"], document["schema_version"]) == ("repo-builder/perf", 2)
    assert document == json.loads(json.dumps(schema.to_json(perf_run)))  # the line breaks change nothing


def test_a_run_of_the_first_schema_is_still_a_baseline(perf_run: PerfRun, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    first = {
        "schema_version": 1,
        "layers": [{"name": "a", "type": "b", "precision": "int8"}],
        "ladder": {"rungs": [{}]},
    }
    path.write_text(json.dumps(schema.to_json(perf_run) | first), encoding="utf-8")
    assert schema.read(path) == dataclasses.replace(perf_run, layers=(), ladder=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "is no measurement"),
        ({"schema_version": 99}, "version 99 of the schema"),
        ({"modle": 1}, "unknown key 'modle' → did you mean 'model'"),
        ({"levels": 3}, "expected an array"),
        ({"model": None}, "'model' is missing"),
    ],
)
def test_json_that_is_no_run_is_one_sentence(
    perf_run: PerfRun, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(schema.to_json(perf_run) | change), encoding="utf-8")
    with pytest.raises(MeasureError, match=message):
        schema.read(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(MeasureError, match="cannot be read"):
        schema.read(path)


def test_every_field_of_the_json_is_documented(perf_run: PerfRun) -> None:
    text = DOCS.read_text(encoding="utf-8")

    def names(value: object) -> set[str]:
        if dataclasses.is_dataclass(value):
            fields = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
            return set(fields).union(*(names(item) for item in fields.values()))
        return set().union(*(names(item) for item in value)) if isinstance(value, tuple) else set()

    missing = {name for name in names(perf_run) if f"`{name}`" not in text}
    assert not missing
    assert f"`schema_version` is {schema.VERSION}" in text
