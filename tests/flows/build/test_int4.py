"""int4 weights and weights beside the model, from a recipe to a real server's answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from tritonclient import grpc

from repo_builder import serve
from repo_builder.core import onnx_files
from repo_builder.core.artifacts import EngineArtifact, read
from repo_builder.core.errors import CompileError
from repo_builder.core.recipe import parse
from repo_builder.flows import build as building
from repo_builder.flows.validating import validate
from repo_builder.measure.judge.agreement import compare
from tests.conftest import dropped
from tests.flows.build.conftest import Project

RULES = {
    "as_it_came": [],
    "eight": [{"type": "Linear", "precision": "int8"}],
    "four": [{"type": "Linear", "precision": "int4"}],
}
WIDTH = 64
ANY_PORTS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}


def write(project: Project, name: str, rules: list[dict[str, Any]], **tables: Any) -> Project:
    """A chain of linear layers: a MatMul with its bias, a Gemm, and one that is never asked for less than fp32."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
        helper.make_node("Add", ["h", "b0"], ["a"], name="bias"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w1"], ["y"], name="second", transB=1, alpha=0.5),
    ]
    shapes = {"w0": (WIDTH, WIDTH), "b0": (WIDTH,), "w1": (WIDTH, WIDTH)}
    project.write(
        nodes=nodes,
        graph=({"x": ["N", WIDTH]}, {"y": ["N", WIDTH]}),
        recipe=([{"name": "x", "shape": [WIDTH]}], [{"name": "y", "shape": [WIDTH]}]),
        data={"x": random.normal(size=(60, WIDTH)).astype(np.float32)},
        stored={key: (random.normal(size=shape) / 8).astype(np.float32) for key, shape in shapes.items()},
        rules=rules,
        name=name,
        **{"quantize": {"keep": "all", "layers": rules}, **tables},
    )
    return project


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The same network as it came, in int8 and in int4, where no file may hold more than 2 kB."""
    project = Project(tmp_path_factory.mktemp("large"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_files, "LARGEST_BYTES", 2048)
        made = {name: write(project, name, rules).build() for name, rules in RULES.items()}
        yield SimpleNamespace(made=made, project=project, repository=project.folder / "model_repository")


@pytest.mark.parametrize("name", RULES)
def test_a_model_that_no_file_holds_has_its_weights_beside_it(built: SimpleNamespace, name: str) -> None:
    version = built.repository / name / "1"
    model, data = version / "model.onnx", version / "model.onnx.data"
    assert model.stat().st_size < 3 * 1024 < data.stat().st_size
    onnx.checker.check_model(str(model)) if name != "four" else onnx.load(model)
    placed = read(EngineArtifact, version)
    assert {"model.onnx", "model.onnx.data"} == set(placed.files)
    assert not [item for item in validate(built.repository).findings if item.level == "error"]


def test_the_model_names_the_hash_of_what_lies_beside_it(built: SimpleNamespace, tmp_path: Path) -> None:
    """So that other weights in the same places are another model to everything that hashes its file."""
    network = onnx_files.load(built.repository / "as_it_came" / "1" / "model.onnx")
    onnx_files.save(network, tmp_path / "one" / "model.onnx")
    stored = network.graph.initializer[0]
    stored.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(stored) + 1, stored.name))
    onnx_files.save(network, tmp_path / "other" / "model.onnx")
    one, other = ((tmp_path / name / "model.onnx").read_bytes() for name in ("one", "other"))
    assert (len(one), one == other) == (len(other), False)


def test_int4_is_told_in_the_table_with_bits_block_and_size(built: SimpleNamespace) -> None:
    result = built.made["four"]
    rows = {row.name: row for row in result.engine.layers}
    assert [row.form for row in rows.values()] == ["int4 weights, block 32"] * 2
    weights = WIDTH * WIDTH
    assert (rows["first"].weights, rows["first"].weight_bytes) == (weights, weights // 2 + 2 * WIDTH * 4 + WIDTH)
    assert any(
        "int4 weights (block 32) of 2 layers take 5.2 kB, in fp32 32.8 kB" in note
        for note in result.engine.details.notes
    )
    assert "accuracy_level 4" in " ".join(result.engine.details.notes)
    kinds = [node.op_type for node in onnx.load(result.engine.model, load_external_data=False).graph.node]
    assert kinds.count("MatMulNBits") == 2
    placed = onnx.load(result.engine.placed, load_external_data=False)
    assert [node.op_type for node in placed.graph.node].count("DequantizeLinear") == 2
    ladder = {record.form: record.sqnr_db for record in result.accuracy}
    assert 12 < ladder["placed"] < ladder["onnxruntime"]
    assert all(12 < (row.sqnr_db or 0) < 40 for row in rows.values())


@pytest.mark.server
def test_all_of_them_are_served_as_they_were_measured(built: SimpleNamespace) -> None:
    x = np.random.default_rng(5).normal(size=(4, WIDTH)).astype(np.float32)
    item = grpc.InferInput("x", x.shape, "FP32")
    item.set_data_from_numpy(x)
    log = built.project.folder / "log"
    with dropped(serve.start(built.repository, runtime="embedded", log=log, **ANY_PORTS)) as server:
        server.wait_ready(300)
        with grpc.InferenceServerClient(server.grpc_url) as client:
            answers = {name: client.infer(name, [item], client_timeout=60).as_numpy("y") for name in RULES}
    least = {"as_it_came": 100.0, "eight": 25.0, "four": 12.0}
    exact = onnx.reference.ReferenceEvaluator(onnx_files.load(built.project.folder / "four.onnx")).run(None, {"x": x})
    for name, answer in answers.items():
        row = compare(np.asarray(exact[0]), answer, name="y")
        assert row.sqnr_db is not None
        assert row.sqnr_db > least[name], name


def test_what_does_not_pay_is_left_out_and_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from repo_builder.compile.onnxruntime import speed
    from repo_builder.core.details import SpeedRecord

    def against(_: speed.Timer, candidate: Path) -> tuple[SpeedRecord, ...]:
        slow = any(node.op_type == "MatMulNBits" for node in onnx.load(candidate).graph.node)
        return (SpeedRecord(batch_size=1, reference_us=100.0, candidate_us=150.0 if slow else 100.0),)

    monkeypatch.setattr(speed.Timer, "against", against)
    result = write(project, "small", RULES["four"], quantize={"layers": RULES["four"]}).build()
    assert {row.got for row in result.engine.layers} == {"fp32"}
    reason = "first, second were to be int4 and are fp32: left in fp32: int4 is 0.67 times as fast here"
    assert reason in result.engine.details.notes
    assert not (result.engine.path / "placed.onnx").exists()


def test_another_target_is_refused_before_any_work(project: Project) -> None:
    write(project, "small", RULES["four"], compile={"onnxruntime": {"accelerator": "cuda"}})
    with pytest.raises(
        CompileError, match=r"^quantize.layers\[0\].precision: TensorRT takes int4 weights from version 10"
    ):
        project.build()
    assert not (project.folder / "build").exists()


def test_what_the_products_are_computed_in_is_the_recipe_s_to_say(project: Project) -> None:
    write(project, "small", RULES["four"], compile={"onnxruntime": {"int4_compute": "fp32"}})
    result = building.build(dataclasses.replace(project.options(), recipe=parse(project.document)))
    levels = {
        item.i
        for node in onnx.load(result.engine.model).graph.node
        for item in node.attribute
        if item.name == "accuracy_level"
    }
    assert levels == {1}
    ladder = {record.form: record.sqnr_db or 0 for record in result.accuracy}
    assert ladder["onnxruntime"] > 100
