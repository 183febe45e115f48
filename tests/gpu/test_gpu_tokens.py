"""A transformer over token ids as a plan: int64 inputs, lengths that vary, from a recipe to Triton's answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder import recipes
from repo_builder.core import artifacts
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.errors import CompileError
from repo_builder.flows import build as flow
from repo_builder.flows.build import BuildOptions

pytestmark = [pytest.mark.server]
WORDS, WIDTH, HEADS, LONGEST, LARGEST = 50, 32, 2, 16, 4
RECIPE = """
name = "tokens"
[model]
source = "{folder}/tokens.onnx"
[[model.inputs]]
name = "ids"
dtype = "int64"
shape = [-1]
[[model.inputs]]
name = "mask"
dtype = "int64"
shape = [-1]
[[model.outputs]]
name = "states"
dtype = "float32"
shape = [-1, 32]
[data]
source = "{folder}/tokens.npz"
test = 0.5
calibration = 16
[[quantize.layers]]
type = "MatMul"
precision = "fp16"
[[compile.tensorrt.profiles]]
min_batch = 1
opt_batch = 4
max_batch = 4
shapes.ids = {{ min = [2], opt = [8], max = [16] }}
shapes.mask = {{ min = [2], opt = [8], max = [16] }}
[repository]
max_batch_size = 4
[measure]
task = "other"
"""


def network() -> onnx.ModelProto:
    """Embedding, LayerNormalization, masked attention of two heads, GELU; batch and length vary."""
    random, values, nodes = np.random.default_rng(11), [], []

    def constant(name: str, value: Any) -> str:
        values.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"/{output}", **attributes))
        return output

    def linear(tensor: str, name: str, rows: int, columns: int) -> str:
        weight = random.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)
        made = node("MatMul", [tensor, constant(f"{name}.weight", weight)], name)
        return node("Add", [made, constant(f"{name}.bias", np.full(columns, 0.1, np.float32))], f"{name}_sum")

    def norm(tensor: str, name: str) -> str:
        scale = [constant(f"{name}.{key}", np.full(WIDTH, at, np.float32)) for key, at in (("scale", 1), ("bias", 0))]
        return node("LayerNormalization", [tensor, *scale], name, axis=-1)

    table = constant("words", random.normal(0, 1, (WORDS, WIDTH)).astype(np.float32))
    x = node("Gather", [table, "ids"], "embedded")
    heads = constant("heads", np.array([0, -1, HEADS, WIDTH // HEADS]))
    parts = {}
    for name, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
        split = node("Reshape", [linear(norm(x, f"norm_{name}"), name, WIDTH, WIDTH), heads], f"{name}_split")
        parts[name] = node("Transpose", [split], f"{name}_heads", perm=order)
    product = node("MatMul", [parts["q"], parts["k"]], "product")
    scaled = node("Mul", [product, constant("scale", np.float32((WIDTH // HEADS) ** -0.5))], "scaled")
    left_out = node("Sub", [constant("one", np.float32(1)), node("Cast", ["mask"], "counts", to=1)], "left_out")
    low = node("Mul", [left_out, constant("low", np.float32(-1e4))], "low_there")
    masked = node("Add", [scaled, node("Unsqueeze", [low, constant("axes", np.array([1, 2]))], "low_all")], "masked")
    seen = node("MatMul", [node("Softmax", [masked], "weights", axis=-1), parts["v"]], "seen")
    merged = node("Transpose", [seen], "seen_back", perm=(0, 2, 1, 3))
    flat = node("Reshape", [merged, constant("merge", np.array([0, -1, WIDTH]))], "merged")
    x = node("Add", [x, linear(flat, "out", WIDTH, WIDTH)], "attended")
    wide = linear(norm(x, "norm_mlp"), "up", WIDTH, 2 * WIDTH)
    root = node("Div", [wide, constant("root", np.float32(2**0.5))], "root_of")
    grown = node("Add", [node("Erf", [root], "erf"), constant("more", np.float32(1))], "erf_up")
    gelu = node("Mul", [node("Mul", [wide, grown], "gelu_up"), constant("half", np.float32(0.5))], "gelu")
    node("Add", [x, linear(gelu, "down", 2 * WIDTH, WIDTH)], "states")
    ends = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"]) for name in ("ids", "mask")]
    out = helper.make_tensor_value_info("states", TensorProto.FLOAT, ["n", "length", WIDTH])
    graph = helper.make_graph(nodes, "tokens", ends, [out], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tokens(count: int, length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(count * 100 + length)
    lengths = random.integers(1, length + 1, (count, 1))
    return {
        "ids": random.integers(0, WORDS, (count, length)),
        "mask": (np.arange(length) < lengths).astype(np.int64),
    }


def build(folder: Path, target: str) -> EngineArtifact:
    onnx.save(network(), folder / "tokens.onnx")
    np.savez(folder / "tokens.npz", **tokens(64, 8))
    (folder / "tokens.toml").write_text(RECIPE.format(folder=folder))
    recipe = recipes.load(str(folder / "tokens.toml"))
    options = BuildOptions(recipe=recipe, work=folder / "build", repository=folder / "repository", target=target)
    flow.build(options)
    return artifacts.read(EngineArtifact, folder / "build" / "tokens" / "engine")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
    import tensorrt

    from repo_builder import serve
    from repo_builder.compile.tensorrt.plan import PlanRunner

    if tensorrt.__version__.startswith("8.5."):
        pytest.skip("the builder of TensorRT 8.5.3.1 ends in an internal error on it (engine != nullptr failed)")
    folder = tmp_path_factory.mktemp("tokens")
    engine = build(folder, "tensorrt")
    with (
        PlanRunner(engine.model) as plan,
        serve.start(folder / "repository", http_port=0, grpc_port=0, metrics_port=0, log=folder / "log") as server,
    ):
        server.wait_ready(120)
        yield SimpleNamespace(server=server, plan=plan, engine=engine)


def infer(served: SimpleNamespace, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import tritonclient.grpc as grpc

    connection = grpc.InferenceServerClient(served.server.grpc_url)
    wanted = {item.name: item.dtype for item in served.engine.inputs}
    tensors = []
    for name, value in inputs.items():
        given = value.astype(wanted[name].numpy)
        tensors.append(grpc.InferInput(name, list(given.shape), wanted[name].value.upper()))
        tensors[-1].set_data_from_numpy(given)
    result: np.ndarray = connection.infer("tokens", tensors).as_numpy("states")
    return result


def test_the_grid_of_batches_and_lengths_is_bit_equal_to_the_plan(served: SimpleNamespace) -> None:
    for count in range(1, LARGEST + 1):
        for length in range(2, LONGEST + 1):
            given = tokens(count, length)
            np.testing.assert_array_equal(infer(served, given), served.plan.whole(given)["states"])


def test_the_plan_answers_as_onnx_runtime_does(served: SimpleNamespace) -> None:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(network().SerializeToString(), providers=["CPUExecutionProvider"])
    for count, length in ((1, 2), (3, 7), (4, 16)):
        given = tokens(count, length)
        wanted = session.run(None, given)[0]
        counts = given["mask"].astype(bool)  # what a place that does not count gives is nobody's business
        np.testing.assert_allclose(served.plan.whole(given)["states"][counts], wanted[counts], atol=0.05)


def test_an_id_that_int32_cannot_hold_is_refused(served: SimpleNamespace) -> None:
    given = tokens(1, 4)
    given["ids"][0, 0] = 2**31
    if "ids" not in served.engine.details.narrowed:
        pytest.skip("this TensorRT has int64")
    with pytest.raises(CompileError, match="ids"):
        served.plan.whole(given)
