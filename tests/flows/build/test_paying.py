"""Which int8 layers stay: what the outputs keep decides, then what pays. Times are made up, all else is real."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import pytest

from repo_builder import recipes
from repo_builder.compile.onnxruntime import speed
from repo_builder.core.details import OnnxRuntimeDetails, SpeedRecord, TriedRecord
from repo_builder.core.graphs import DQ
from repo_builder.core.tensors import Array
from repo_builder.flows import build as building
from repo_builder.flows.build import BuildOptions, BuildResult, paying

Pace = Callable[[int], float]  # DequantizeLinear nodes of a graph → times as fast as fp32


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pace], None]:
    """Let a table of the test's own stand for the clock."""

    def pace(table: Pace) -> None:
        def against(_: speed.Timer, candidate: Path) -> tuple[SpeedRecord, ...]:
            count = sum(node.op_type == DQ for node in onnx.load(candidate).graph.node)
            return (SpeedRecord(batch_size=1, reference_us=100.0, candidate_us=100.0 / table(count)),)

        monkeypatch.setattr(speed.Timer, "against", against)

    return pace


def build(folder: Path, *settings: str, name: str = "jsc-tiny") -> BuildResult:
    return building.build(
        BuildOptions(
            recipe=recipes.load(name, settings),
            work=folder / "build",
            repository=folder / "repository",
            target="onnxruntime",
        )
    )


def got(result: BuildResult) -> set[str | None]:
    return {row.got for row in result.engine.layers}


def details(result: BuildResult) -> OnnxRuntimeDetails:
    assert isinstance(result.engine.details, OnnxRuntimeDetails)
    return result.engine.details


def test_int8_that_pays_stays_and_the_choice_is_kept(paced: Callable[[Pace], None], tmp_path: Path) -> None:
    paced(lambda count: 2.0 if count else 1.0)
    result = build(tmp_path)
    assert got(result) == {"int8"}
    taken = [row for row in details(result).tried if row.chosen]
    assert [row.what for row in taken] == ["all of them"]
    assert taken[0].speed[0].speedup == pytest.approx(2.0)
    assert taken[0].sqnr_db is not None
    paced(lambda count: 0.5 if count else 1.0)  # nothing is timed again: what was decided is in the manifest
    again = build(tmp_path)
    assert again.skipped == ("export", "compile", "place")
    assert details(again).tried == details(result).tried


def test_a_network_in_which_nothing_pays_comes_out_fp32_and_says_so(
    paced: Callable[[Pace], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paced(lambda count: 0.8 if count else 1.0)
    result = build(tmp_path)
    assert got(result) == {"fp32"}
    assert {row.asked for row in result.engine.layers} == {"int8"}
    assert {row.reason for row in result.engine.layers} == {"left in fp32: int8 is 0.80 times as fast here"}
    assert details(result).tried[-1].chosen
    assert "int8 does not pay here: the network comes out in fp32 (taken)" in capsys.readouterr().err
    assert not [node for node in onnx.load(result.engine.model).graph.node if node.op_type == DQ]
    kept = build(tmp_path, "quantize.keep=all")
    assert got(kept) == {"int8"}
    assert kept.skipped == ("export",)  # what is kept is no matter of the fp32 graph and its ranges
    assert details(kept).tried == ()


def test_a_layer_that_is_called_by_its_name_is_obeyed(paced: Callable[[Pace], None], tmp_path: Path) -> None:
    paced(lambda count: 0.5 if count else 1.0)
    first = build(tmp_path).engine.layers[0].name
    result = build(tmp_path, "quantize.layers.0.type=Linear", f"quantize.layers.0.name={first}")
    assert result.engine.layers[0].got == "int8"


def test_outputs_come_before_speed(paced: Callable[[Pace], None], tmp_path: Path) -> None:
    """No int8 layer keeps 100 dB: all that is fast has to go."""
    paced(lambda count: 3.0 if count else 1.0)
    result = build(tmp_path, "measure.output_sqnr_db=100", "measure.task=other")
    assert "int8" not in got(result)
    assert not details(result).tried[0].fits
    assert all("dB of the outputs is left with all in int8" in row.reason for row in result.engine.layers)


def test_what_a_few_samples_let_pass_many_judge(
    paced: Callable[[Pace], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Samples that are hard may be rare: the few that every look takes know none of them here."""
    paced(lambda count: 2.0 if count else 1.0)
    looked: list[int] = []

    def ratio(_: object, left: frozenset[str], samples: Mapping[str, Array]) -> tuple[float, str]:
        looked.append(len(next(iter(samples.values()))))
        return (5.0, "too little") if looked[-1] > 8 and not left else (50.0, "")

    monkeypatch.setattr(paying._Weighing, "_ratio", ratio)
    result = build(tmp_path)
    assert looked[:2] == [8, 64]
    assert (details(result).tried[0].sqnr_db, details(result).tried[0].fits) == (5.0, False)
    assert details(result).tried[1].fits


def test_what_repairs_found_for_all_layers_is_undone_where_it_harms_the_choice_that_is_built(
    paced: Callable[[Pace], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Shifts stand for errors of the layers before, which may be in fp32 now; what keeps more is built, and told."""
    paced(lambda count: 3.0)
    repaired = ("quantize.repair.correct_bias=true", 'quantize.repair.keep="all"', "data.calibration=16")
    compared, better = paying._Weighing._compared, [3.0]

    def seen(
        self: paying._Weighing, left: frozenset[str], samples: Mapping[str, Array], *, plain: bool
    ) -> tuple[float, str]:
        db, why = compared(self, left, samples, plain=plain)
        return db + better[0] * plain, why

    def without_the_first(self: paying._Weighing, _: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
        paced(lambda count: 9.0)
        return [("without the first", frozenset(self.free[:1]))]

    monkeypatch.setattr(paying._Weighing, "_compared", seen)
    monkeypatch.setattr(paying._Weighing, "_candidates", without_the_first)
    graphs = []
    for better[0], undone, setting in ((3.0, 1, "measure.output_sqnr_db=5"), (-90.0, 0, "measure.output_sqnr_db=6")):
        paced(lambda count: 3.0)
        result = build(tmp_path, *repaired, setting, name="jsc-toy")
        assert [row.got for row in result.engine.layers].count("fp32") == 1
        assert sum(note.startswith("repairs of codes and biases") for note in details(result).notes) == undone
        graphs.append(sorted(map(str, onnx.load(result.engine.placed).graph.initializer)))
    assert graphs[0] != graphs[1]
    assert result.skipped == ("export",)


def test_layers_that_are_beyond_use_are_named_where_all_in_int8_is_refused(
    paced: Callable[[Pace], None], tmp_path: Path
) -> None:
    paced(lambda count: 3.0 if count else 1.0)
    result = build(tmp_path, 'quantize.layers.0.input={ calibrator = "percentile", percentile = 60.0 }')
    named = [
        note for note in details(result).notes if note.startswith("layers that keep less than 10 dB on their own:")
    ]
    assert named
    assert any(note.endswith("(too little)") for note in details(result).notes)
    assert "less than" not in " ".join(details(build(tmp_path / "good")).notes)


def test_pieces_that_help_are_left_in_fp32_before_those_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors cancel: on PP-OCR's recogniser one piece in fp32 gained 7 dB, and each further one lost some."""
    weighing = object.__new__(paying._Weighing)
    weighing.tried, weighing.free = [TriedRecord(what="all of them", sqnr_db=18.9)], tuple("abcd")
    keeps = {"a": 25.7, "ab": 22.0, "ac": 26.1, "acd": 27.5, "abcd": 100.0}

    def look(self: paying._Weighing, what: str, left: frozenset[str]) -> bool:
        db = keeps["".join(sorted(left))]
        self.tried.append(TriedRecord(what=what, sqnr_db=db))
        return db >= enough[0]

    monkeypatch.setattr(paying._Weighing, "_look", look)
    pieces = [frozenset(name) for name in "abcd"]
    enough = [0.0]
    for enough[0], chosen, looks in ((25.0, "a", 1), (27.0, "acd", 4), (90.0, "abcd", 5)):
        weighing.tried = weighing.tried[:1]
        assert weighing._fewest(pieces) == frozenset(chosen)
        assert len(weighing.tried) == looks + 1
