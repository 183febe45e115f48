from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.measure.judge.statistics import summarise
from repo_builder.measure.load import merging
from repo_builder.measure.load.course import Course, Pace, stable
from repo_builder.measure.load.records import Records
from repo_builder.measure.load.server_stats import Counters, Snapshot
from repo_builder.results import Hardware, Level, Window

SECOND = 10**9


def steady(start_ns: int, seconds: float, rate: float, latency_ns: int) -> Records:
    """Requests at an even rate, the first one interval after the start."""
    done = (start_ns + (np.arange(int(seconds * rate)) + 1) * (SECOND / rate)).astype(np.int64)
    return Records(
        due_ns=done - latency_ns - 1000,
        sent_ns=done - latency_ns,
        done_ns=done,
        cpu_ns=int(seconds * 1e8),
        wall_ns=int(seconds * 1e9),
    )


def snapshot(at_ns: int, requests: int) -> Snapshot:
    counters = Counters(
        requests=requests,
        inferences=2 * requests,
        executions=requests // 2,
        total_ns=requests * 800_000,
        parts_ns=(requests * 100_000, requests * 10_000, requests * 500_000, requests * 20_000, 0, 0),
        batch_sizes={2: 7, 4: requests // 2},
    )
    return Snapshot(time_ns=at_ns, counters={"m": counters})


def course(*latencies_ns: int, mode: str = "concurrency", counted: int = 100) -> Course:
    """One-second windows of 100 requests/s after a warm-up of one second."""
    made = Course(level=Level(mode=mode, concurrency=4, batch_size=2, request_rate=100.0), pace=Pace(), workers=1)  # type: ignore[arg-type]
    made.start(SECOND, snapshot(SECOND, 1000), steady(0, 1.25, 100, 1))
    for place, latency_ns in enumerate(latencies_ns, 1):
        first = SECOND + (SECOND // 4 if place == 1 else 0)
        made.add(steady(first if place == 1 else place * SECOND, 0.75 if place == 1 else 1, 100, latency_ns))
        end = (place + 1) * SECOND
        made.cut(end, snapshot(end, 1000 + place * counted))
    return made


def nothing(start_ns: int, end_ns: int, inferences: int) -> Hardware | None:
    return None


def test_warm_up_is_discarded_and_what_came_after_its_end_is_kept() -> None:
    windows = course(10**6, 10**6).windows()
    assert [item.requests for item in windows] == [100, 100]


def test_the_last_three_windows_are_merged() -> None:
    found = merging.result(course(9 * 10**6, 10**6, 10**6, 10**6), nothing)
    assert found.merged == 3
    assert len(found.windows) == 4
    assert found.seconds == pytest.approx(3)
    assert found.requests == 300
    assert found.infer_per_s == pytest.approx(200)
    assert found.latency is not None
    assert found.latency.max_us == 1000
    assert found.stable
    assert found.latency_from_due is None


def test_the_servers_time_is_of_the_merged_windows_only() -> None:
    found = merging.result(course(*[10**6] * 4), nothing)
    server = found.server[0]
    assert server.requests == 300
    assert server.batch_sizes == ((4, 150),)  # what ran before the windows is not among them
    assert (server.queue_us, server.compute_infer_us) == (100, 500)
    assert found.network_and_client_us == pytest.approx(200)  # 1000 µs seen by the client, 800 by the server
    assert found.notes == ()


def test_others_requests_are_noticed() -> None:
    found = merging.result(course(*[10**6] * 3, counted=150), nothing)
    assert "others used the model meanwhile: the server counted 450 requests, ours 300" in found.notes


def test_ones_own_failed_requests_are_not_others() -> None:
    made = course(*[10**6] * 3, counted=150)
    for place in range(3):
        failed = np.full(50, (place + 1) * SECOND + 5, dtype=np.int64)
        made.pieces[place] = dataclasses.replace(
            made.pieces[place], records=dataclasses.replace(made.pieces[place].records, failed_ns=failed)
        )
    assert not any("others" in note for note in merging.result(made, nothing).notes)


@pytest.mark.parametrize(("lags_ms", "said"), [((0, 500, 0), False), ((100, 300, 500), True)])
def test_a_server_that_has_caught_up_is_not_said_to_fall_behind(lags_ms: tuple[int, ...], said: bool) -> None:
    made = course(mode="rate")
    for place, lag_ms in enumerate(lags_ms, 1):
        made.add(dataclasses.replace(steady(place * SECOND, 1, 100, 10**6), lag_open_ns=lag_ms * 10**6))
        made.cut((place + 1) * SECOND, None)
    notes = merging.result(made, nothing).notes
    assert any("up to 500 ms late" in note for note in notes) == said


def test_a_level_that_drifts_is_unstable_and_not_dropped() -> None:
    found = merging.result(course(10**6, 2 * 10**6, 4 * 10**6), nothing)
    assert found.stable is False
    assert found.requests == 300


def test_a_trace_merges_everything_and_claims_no_stability() -> None:
    found = merging.result(course(*[10**6] * 5, mode="trace"), nothing)
    assert found.merged == 5
    assert found.stable is None
    assert found.latency_from_due is not None


def test_an_open_loop_counts_latency_from_both_times() -> None:
    found = merging.result(course(*[10**6] * 3, mode="rate"), nothing)
    assert found.latency is not None
    assert found.latency_from_due is not None
    assert found.latency_from_due.p50_us >= found.latency.p50_us + 1


def test_nothing_measured_is_a_result_too() -> None:
    empty = Course(level=Level(), pace=Pace(), workers=1)
    found = merging.result(empty, nothing, stopped="gone")
    assert (found.requests, found.latency, found.server, found.stopped) == (0, None, (), "gone")


def test_the_client_tells_what_it_cost_and_when_it_was_the_limit() -> None:
    made = course(*[10**6] * 3)
    found = merging.result(made, nothing)
    assert found.client is not None
    assert found.client.cpu_share == pytest.approx(0.1)
    assert not found.client.limited
    busy = Course(level=Level(), pace=Pace(), workers=1)
    busy.start(0, None, Records())
    for place in range(3):
        busy.add(
            Records(
                due_ns=np.array([0]),
                sent_ns=np.array([1]),
                done_ns=np.array([place * SECOND + 5]),
                cpu_ns=95,
                wall_ns=100,
            )
        )
        busy.cut((place + 1) * SECOND, None)
    limited = merging.result(busy, nothing)
    assert limited.client is not None
    assert limited.client.limited
    assert "the client was the limit" in limited.notes[0]


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=3, max_size=6), st.floats(0.01, 0.5))
def test_stable_means_that_each_of_the_last_three_is_near_their_mean(
    pairs: list[tuple[float, float]], tolerance: float
) -> None:
    windows = [
        Window(seconds=1, requests=100, errors=0, infer_per_s=rate, latency=summarise(np.full(3, latency * 1000)))
        for rate, latency in pairs
    ]
    last = np.array(pairs[-3:])
    near = (np.abs(last / last.mean(axis=0) - 1) <= tolerance).all()
    margin = np.abs(np.abs(last / last.mean(axis=0) - 1) - tolerance).min()
    if margin > 1e-9:
        assert stable(windows, Pace(tolerance=tolerance)) == near
    assert not stable(windows[:2], Pace(tolerance=tolerance))
    assert not stable(windows, Pace(tolerance=tolerance, window_requests=101))


def test_paces_for_a_duration_and_for_a_number_of_requests() -> None:
    assert (Pace().for_seconds(6).window_s, Pace().for_seconds(6).until_stable) == (2, False)
    assert (Pace().for_requests(100).window_requests, Pace().for_requests(100).window_s) == (34, 0)
    assert Pace().for_seconds(120).longest_s > 120


def test_a_number_of_requests_at_a_rate_ends_where_the_server_never_answers_them_all() -> None:
    assert Pace().for_requests(300).for_rate(100_000).longest_s < 100
    assert Pace().for_requests(30_000).for_rate(10).most_s == 3600
    assert Pace().for_seconds(1000).for_rate(10) == Pace().for_seconds(1000)
