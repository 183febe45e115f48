"""Repairs in a build: from torch and from a file, kept in the artifact, up to date, told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from repo_builder import datasets, recipes
from repo_builder.core import artifacts, onnx_files
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.flows import build as building
from repo_builder.flows.build import BuildOptions, exporting
from repo_builder.quantize import store

REPAIRS = (
    "quantize.keep=all",
    "quantize.repair.equalize=true",
    'quantize.repair.rounding="adaptive"',
    "quantize.repair.correct_bias=true",
    'quantize.repair.keep="all"',
    "data.calibration=64",
)


def options(folder: Path, *settings: str) -> BuildOptions:
    return BuildOptions(
        recipe=recipes.load("jsc-toy", (*REPAIRS, *settings)),
        work=folder / "build",
        repository=folder / "model_repository",
        target="onnxruntime",
    )


def exported(asked: BuildOptions) -> tuple[OnnxArtifact, bool]:
    recipe = asked.recipe
    data = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=None)
    return exporting.run(asked, data, ("onnxruntime-cpu", "none"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, building.BuildResult]:
    folder = tmp_path_factory.mktemp("repaired")
    return folder, building.build(options(folder))


def test_a_build_says_what_each_repair_did_and_keeps_what_it_made(built) -> None:
    _, result = built
    assert [item.name for item in result.exported.details.repairs] == ["equalize", "rounding", "correct_bias"]
    assert [item["name"] for item in result.to_dict()["repairs"]] == ["equalize", "rounding", "correct_bias"]
    for item in result.exported.details.repairs:
        assert f"repair: {item}" in result.engine.details.notes
    assert result.exported.to_place.name == artifacts.REPAIRED_MODEL
    result.exported.require_whole()
    # fp32 is the network that came, whatever repairs make of it
    assert "repaired" not in result.exported.model.read_bytes().decode("latin-1")
    assert result.engine.accuracy[-1].departs is False
    ranges = store.read_ranges(result.exported.ranges)
    assert all(item.codes is not None and item.shift is not None for item in ranges.weights.values())


def test_the_int8_weights_that_rounding_chose_are_those_that_are_served(built) -> None:
    from onnx import numpy_helper

    _, result = built
    chosen = store.read_ranges(result.exported.ranges).weights
    stored = [
        numpy_helper.to_array(item)
        for item in onnx_files.load(result.engine.model).graph.initializer
        if item.data_type == 3  # int8
    ]
    for item in chosen.values():
        assert any(value.shape == item.codes.shape and (value == item.codes).all() for value in stored)


def test_a_second_build_has_nothing_to_do_and_another_repair_makes_it_again(built, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built[0], folder)
    assert building.build(options(folder)).skipped == ("export", "compile", "place")
    _, skipped = exported(options(folder, "quantize.repair.smooth=0.5"))
    assert not skipped
    _, skipped = exported(options(folder, "compile.target=tensorrt"))
    assert not skipped  # repairs are judged for the target


def test_an_onnx_file_is_repaired_as_the_module_is(built, tmp_path: Path) -> None:
    _, result = built
    other = options(tmp_path, f"model.source={result.exported.model}")
    found, _ = exported(other)
    one, two = (store.read_ranges(item.ranges) for item in (result.exported, found))
    assert one.weights.keys() == two.weights.keys()
    for name, item in one.weights.items():
        np.testing.assert_array_equal(item.codes, two.weights[name].codes)
        np.testing.assert_allclose(item.shift, two.weights[name].shift, rtol=1e-5, atol=1e-7)


def test_without_repairs_there_is_no_second_graph(tmp_path: Path) -> None:
    plain = BuildOptions(
        recipe=recipes.load("jsc-toy", ("data.calibration=16",)),
        work=tmp_path / "build",
        repository=tmp_path / "model_repository",
        target="onnxruntime",
    )
    found, _ = exported(plain)
    assert found.to_place == found.model
    assert not (found.path / artifacts.REPAIRED_MODEL).exists()
    assert found.details.repairs == ()
