"""Repairs in their order: each is judged, kept or dropped, and says so."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from repo_builder.core.errors import QuantizeError
from repo_builder.core.recipe import InputQuantizer, LayerRule, RepairSpec, WeightQuantizer
from repo_builder.quantize import choosing, repair
from repo_builder.quantize.placement import PROFILES

ALL = RepairSpec(equalize=True, smooth=0.5, rounding="adaptive", correct_bias=True)
PER_TENSOR = LayerRule(precision="int8", weight=WeightQuantizer(per_channel=False))


@pytest.mark.parametrize("target", list(PROFILES))
def test_all_together_say_what_they_did_and_none_that_is_kept_harms(mobile_net, pictures, repair_of, target) -> None:
    found = repair_of(mobile_net(scale=3.0), pictures, ALL, PER_TENSOR, target=target)
    assert [item.name for item in found.records] == ["equalize", "smooth", "rounding", "correct_bias"]
    for before, after in zip(found.records, found.records[1:], strict=False):
        if before.kept:
            assert after.before_db == before.after_db
    for item in found.records:
        assert item.samples == 8  # every fourth of 32
        assert not item.kept or item.after_db >= item.before_db - 0.01
    assert "dB of the outputs on 8 samples kept aside" in str(found.records[0])


def test_the_same_again_is_the_same_to_the_byte(mobile_net, pictures, repair_of) -> None:
    one, other = (repair_of(mobile_net(), pictures, ALL, PER_TENSOR) for _ in range(2))
    assert one.model.SerializeToString(deterministic=True) == other.model.SerializeToString(deterministic=True)
    assert one.placed().SerializeToString(deterministic=True) == other.placed().SerializeToString(deterministic=True)
    assert one.records == other.records


def test_what_harms_is_dropped_or_kept_as_the_recipe_says(mobile_net, pictures, repair_of, monkeypatch) -> None:
    def harm(state, work):
        weights = {
            name: dataclasses.replace(item, shift=np.full(len(item.amax), 3.0))
            for name, item in state.ranges.weights.items()
        }
        ranges = dataclasses.replace(state.ranges, weights=weights)
        return repair.Repaired(state=dataclasses.replace(state, ranges=ranges), did="harms")

    row = dataclasses.replace(repair.TABLE[-1], repair=harm)
    monkeypatch.setattr(repair, "TABLE", (*repair.TABLE[:-1], row))
    dropped = repair_of(mobile_net(), pictures, RepairSpec(correct_bias=True))
    assert str(dropped.records[0]).endswith("kept aside, dropped")
    assert all(item.shift is None for item in dropped.ranges.weights.values())
    kept = repair_of(mobile_net(), pictures, RepairSpec(correct_bias=True, keep="all"))
    assert str(kept.records[0]).endswith("kept aside, worse, and kept as the recipe says")
    assert all(item.shift is not None for item in kept.ranges.weights.values())


def test_too_few_samples_to_judge_by_are_refused(mobile_net, pictures, repair_of) -> None:
    with pytest.raises(QuantizeError, match="there are 1 calibration samples: some are fitted to") as told:
        repair_of(mobile_net(), pictures[:1], ALL)
    assert "data.calibration to at least 2" in (told.value.hint or "")


def test_the_table_has_a_row_for_every_key_that_asks_for_a_repair() -> None:
    assert [row.key for row in repair.TABLE] == ["equalize", "smooth", "rounding", "correct_bias"]
    for row in repair.TABLE:
        assert row.asked(ALL)
        assert not row.asked(RepairSpec())


def test_best_chooses_anew_for_the_graph_that_repairs_made(mobile_net, pictures, repair_of) -> None:
    best = dataclasses.replace(PER_TENSOR.input, calibrator="best")
    found = repair_of(
        mobile_net(scale=3.0), pictures, RepairSpec(equalize=True), dataclasses.replace(PER_TENSOR, input=best)
    )
    assert found.records[0].kept
    names = {item.calibrator.partition(" ")[0] for item in found.ranges.tensors.values()}
    assert names <= {"max", "percentile", "mse", "entropy"}


@pytest.mark.parametrize("calibrator", ["max", "percentile", "mse", "entropy", "best"])
@pytest.mark.parametrize("network", ["depthwise", "transformer"])
def test_no_repairs_under_any_calibrator_leave_less_than_none(
    networks, repair_of, judged, network, calibrator, monkeypatch
) -> None:
    monkeypatch.setattr(choosing, "_LOOKS", 6)
    model, samples, others = networks[network]
    share = 99.9 if calibrator == "percentile" else None
    rule = LayerRule(precision="int8", input=InputQuantizer(calibrator=calibrator, percentile=share))
    plain = repair_of(model, samples, RepairSpec(), rule)
    judges = samples[3::4]
    graph = {"equalize": True} if network == "depthwise" else {"smooth": 0.5}
    for asked in (
        {"correct_bias": True},
        {**graph, "correct_bias": True},
        {**graph, "rounding": "adaptive", "correct_bias": True},
    ):
        found = repair_of(model, samples, RepairSpec(**asked), rule)
        assert judged(found, judges) >= judged(plain, judges) - 0.02, asked
        assert judged(found, others) >= judged(plain, others) - 0.8, asked  # samples that judged nothing
        kept = [item for item in found.records if item.kept]
        assert judged(found, judges) == pytest.approx(
            kept[-1].after_db if kept else found.records[0].before_db, abs=2e-3
        )  # what is said is of what is handed on


def test_a_repair_of_the_graph_is_judged_by_the_calibrators_that_best_chooses_on_both_sides(
    networks, repair_of, monkeypatch
) -> None:
    model, samples, _ = networks["transformer"]
    seen = []

    def harm(state, work):
        """A graph that is as good as the one before, whose calibration finds poor ranges for it."""
        made = onnx.ModelProto()
        made.CopyFrom(state.model)
        made.graph.doc_string = "other"
        ranges, found = work.calibrate(made)
        seen.append(found.record)
        tensors = {name: dataclasses.replace(item, amax=item.amax / 3) for name, item in ranges.tensors.items()}
        ranges = dataclasses.replace(ranges, tensors=tensors)
        return repair.Repaired(state=repair.State(model=made, ranges=ranges, seen=found), did="harms")

    row = dataclasses.replace(next(item for item in repair.TABLE if item.key == "smooth"), repair=harm)
    monkeypatch.setattr(repair, "TABLE", (row,))
    monkeypatch.setattr(choosing, "_LOOKS", 8)
    rule = LayerRule(precision="int8", input=InputQuantizer(calibrator="best"))
    found = repair_of(model, samples, RepairSpec(smooth=0.5), rule)
    (record,) = found.records
    assert not record.kept
    assert found.model is found.ready
    assert seen[0] is not None
    assert record.before_db == pytest.approx(seen[0].after_db, abs=1e-3)
