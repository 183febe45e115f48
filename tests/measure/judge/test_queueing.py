"""The queueing model keeps the laws that it is made of, and finds its own parameters again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.measure.judge import queueing
from repo_builder.results.tuning import Estimate, QueueModel, Settings, TrialLevel

MODELS = st.builds(
    QueueModel,
    fixed_us=st.floats(0, 5000),
    sample_us=st.floats(0.1, 5000),
    outside_us=st.floats(1, 3000),
    cpu_us=st.floats(0, 2000),
    cores=st.integers(0, 64),
    tail=st.floats(1, 10),
)
SETTINGS = st.builds(
    Settings,
    instances=st.integers(1, 16),
    max_batch_size=st.sampled_from([1, 2, 8, 64, 256]),
    max_queue_delay_us=st.sampled_from([0, 100, 2000]),
    threads=st.sampled_from([None, 1, 2, 8]),
)
LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def level(concurrency: int, rate: float, mean_us: float, **more: float) -> TrialLevel:
    values = {"mean_batch": 1.0, "queue_us": 0.0, "compute_us": mean_us / 2, "cpu_utilisation": 1.0} | more
    p99_us = values.pop("p99_us", mean_us * 2)
    same = {name: Estimate(value=value, low=value, high=value) for name, value in (("rate", rate), ("p99", p99_us))}
    return TrialLevel(
        concurrency=concurrency, batch_size=1, requests=100, whole=True, infer_per_s=same["rate"], p50_us=same["p99"],
        p99_us=same["p99"], mean_us=mean_us, **values,
    )  # fmt: skip


@given(MODELS, SETTINGS, st.sampled_from(LADDER), st.sampled_from([1, 4]))
def test_a_prediction_keeps_littles_law_and_every_bound(
    model: QueueModel, settings: Settings, concurrency: int, batch: int
) -> None:
    found = queueing.predict(model, settings, concurrency, batch)
    flying = concurrency * batch
    assert found.infer_per_s * found.mean_us / 1e6 == pytest.approx(flying)
    assert found.p99_us >= found.mean_us * 0.999
    assert batch <= found.mean_batch <= max(batch, settings.max_batch_size)
    alone = model.fixed_us + model.sample_us * found.mean_batch
    faster = 0.3 + 0.7 / max(1, settings.threads or 1)
    assert found.infer_per_s <= settings.instances * found.mean_batch / max(0.01, alone * faster) * 1e6 * 1.0001
    assert found.infer_per_s <= flying / model.outside_us * 1e6 * 1.0001
    if model.cores and model.cpu_us:
        assert found.infer_per_s <= model.cores / model.cpu_us * 1e6 * 1.0001


@given(MODELS, SETTINGS)
def test_more_instances_of_a_model_that_shares_no_core_are_never_slower(model: QueueModel, settings: Settings) -> None:
    """With batches of one sample; larger ones grow smaller where more instances share them."""
    single = replace(settings, max_batch_size=1, max_queue_delay_us=0)
    free = replace(model, cores=0)
    one, two = (queueing.predict(free, replace(single, instances=number), 32).infer_per_s for number in (1, 2))
    assert two >= one * 0.9999


@given(MODELS, SETTINGS, st.floats(10, 1e6))
def test_the_best_concurrency_keeps_the_limit_or_is_the_smallest(
    model: QueueModel, settings: Settings, limit_us: float
) -> None:
    line, found = queueing.best_concurrency(model, settings, LADDER, 1, limit_us)
    assert line in LADDER
    assert found.p99_us <= limit_us or line == LADDER[0]
    for other in LADDER:
        said = queueing.predict(model, settings, other)
        if said.p99_us <= limit_us:
            assert found.infer_per_s >= said.infer_per_s * 0.98


def test_the_parameters_of_an_affine_execution_are_found_again() -> None:
    """100 µs and 50 a sample; 200 outside; the machine's two cores do 5,000 a second with batches of 16."""
    settings = Settings(instances=1, max_batch_size=32, threads=1)
    light = level(1, 2800.0, 350.0, compute_us=150.0)
    heavy = level(64, 5000.0, 12800.0, compute_us=900.0, mean_batch=16.0, p99_us=25600.0)
    found = queueing.fit(light, heavy, settings, cores=2)
    assert found.fixed_us == pytest.approx(100.0)
    assert found.sample_us == pytest.approx(50.0)
    assert found.outside_us == pytest.approx(200.0)
    assert found.cpu_us == pytest.approx(2 / 5000 * 1e6 - 900 / 16)
    assert found.tail == pytest.approx(2.0)


@given(
    st.floats(1, 1e4), st.floats(1, 1e5), st.floats(0.1, 1e5), st.floats(1, 64), st.sampled_from([0, 1, 2, 64]),
    st.sampled_from([None, 0, 1, 4]),
)  # fmt: skip
def test_whatever_two_levels_say_the_fit_is_a_model(
    mean_us: float, heavy_us: float, compute_us: float, batch: float, cores: int, threads: int | None
) -> None:
    """Also where the statistics contradict each other, or there are none."""
    light = level(1, 1e6 / mean_us, mean_us, compute_us=min(compute_us, mean_us))
    heavy = level(64, 64e6 / heavy_us, heavy_us, compute_us=compute_us, mean_batch=batch)
    for one in (heavy, replace(heavy, mean_batch=None, compute_us=None, queue_us=None, cpu_utilisation=None)):
        found = queueing.fit(light, one, Settings(threads=threads, max_batch_size=64), cores=cores)
        assert min(found.fixed_us, found.cpu_us) >= 0
        assert min(found.sample_us, found.outside_us) > 0
        assert found.tail >= 1
        assert queueing.predict(found, Settings(threads=threads, max_batch_size=8), 16).infer_per_s > 0
