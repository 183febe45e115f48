"""Every ONNX step against a plain reference: numpy, Pillow or torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repo_builder.core import codec
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import ModelSpec, PipelineSpec
from repo_builder.core.sessions import Session
from repo_builder.core.tensors import DType
from repo_builder.datasets import preprocessing
from repo_builder.pipeline import chain, graph, parts, steps
from repo_builder.pipeline.chain import Chain
from repo_builder.pipeline.writer import OPSETS

sizes = st.integers(1, 12)
few = settings(max_examples=15)


def spec_of(name: str, array: np.ndarray) -> dict[str, Any]:
    return {"name": name, "dtype": DType.of_numpy(array.dtype).value, "shape": list(array.shape[1:])}


def resolved(before: list[dict[str, Any]], inputs: list[dict[str, Any]], **more: Any) -> Chain:
    """Resolve steps whose outputs all go to clients; the network beside them takes something of its own."""
    model = {
        "source": "n.onnx",
        "inputs": [{"name": "own", "dtype": "fp32", "shape": [1]}],
        "outputs": [{"name": "given", "dtype": "fp32", "shape": [1]}],
    }
    inputs = [*inputs, {"name": "own", "dtype": "fp32", "shape": [1]}]
    table = {"inputs": inputs, "before": [], "after": before, **more}
    return chain.resolve(codec.build(PipelineSpec, table), codec.build(ModelSpec, model))


def run_step(step: dict[str, Any], classes: tuple[str, ...] = (), **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Run one step on arrays ``(n, ...)``; ``vary`` declares rows and columns as ones that vary.

    What a step gives under the name of what it takes is ``y``.
    """
    vary = step.pop("vary", False)
    inputs = [spec_of(name, value) for name, value in arrays.items()]
    if vary:
        inputs = [{**item, "shape": [-1, -1, item["shape"][2]]} for item in inputs]
    keeps = not any(form.names for kind, form in steps.TABLE.items() if kind.step == step["step"])
    found = resolved([{"inputs": list(arrays), **({"outputs": ["y"]} if keeps else {}), **step}], inputs)
    part = parts.whole(found, found.after)[0]
    model = graph.write(part, None, classes)
    outputs = Session(model.SerializeToString()).run(dict(arrays))
    for item in part.gives:  # what was declared is what comes out
        assert item.fits(outputs[item.name].shape[1:]), (item, outputs[item.name].shape)
        assert item.dtype is DType.of_numpy(outputs[item.name].dtype)
    return outputs


def images(rows: int, columns: int, channels: int = 3, count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, rows, columns, channels)).astype(np.uint8)


@few
@given(sizes, sizes, sizes, sizes, st.sampled_from(["hwc", "chw"]), st.booleans())
def test_resize_is_torchs(rows: int, columns: int, height: int, width: int, layout: str, vary: bool) -> None:
    values = images(rows, columns)
    chw = values.transpose(0, 3, 1, 2)
    vary &= layout == "hwc"
    step = {"step": "resize", "height": height, "width": width, "layout": layout, "vary": vary}
    found = run_step(step, x=values if layout == "hwc" else np.ascontiguousarray(chw))["y"]
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(chw.astype(np.float32)), (height, width), mode="bilinear", align_corners=False
    ).numpy()
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2) if layout == "hwc" else found, wanted, atol=0.02)


@few
@given(sizes, sizes, sizes, st.booleans())
def test_resize_keeps_proportions_to_the_shorter_side(rows: int, columns: int, side: int, vary: bool) -> None:
    found = run_step({"step": "resize", "shorter_side": side, "vary": vary}, x=images(rows, columns))["y"]
    shorter = min(rows, columns)
    assert found.shape[1:3] == (rows * side // shorter, columns * side // shorter)


@few
@given(sizes, sizes, sizes, sizes, st.sampled_from(["hwc", "chw"]), st.booleans())
def test_crop_is_the_middle_with_a_border_of_zeros(
    rows: int, columns: int, height: int, width: int, layout: str, vary: bool
) -> None:
    values = images(rows, columns)
    vary &= layout == "hwc"
    given_ = values if layout == "hwc" else np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    found = run_step({"step": "crop", "height": height, "width": width, "layout": layout, "vary": vary}, x=given_)["y"]
    lack = [max(0, height - rows), max(0, width - columns)]
    whole = np.pad(values, [(0, 0), *((size // 2, size - size // 2) for size in lack), (0, 0)])
    top, left = (whole.shape[1] - height) // 2, (whole.shape[2] - width) // 2
    wanted = whole[:, top : top + height, left : left + width]
    np.testing.assert_array_equal(found, wanted if layout == "hwc" else wanted.transpose(0, 3, 1, 2))


@few
@given(
    sizes, st.floats(0.001, 3), st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 3), min_size=1, max_size=1) | st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
)  # fmt: skip
def test_normalise_is_the_data_sets_own_bit_for_bit(
    rows: int, scale: float, mean: list[float], std: list[float]
) -> None:
    values = np.ascontiguousarray(images(rows, 5).transpose(0, 3, 1, 2))
    table = {"step": "normalise", "scale": scale, "mean": mean, "std": std, "layout": "chw"}
    found = run_step(dict(table), x=values)["y"]
    wanted = preprocessing.normalise(values, scale=scale, mean=mean, std=std if len(std) > 1 else std[0])
    np.testing.assert_array_equal(found, wanted)
    last = run_step({**table, "layout": "hwc"}, x=np.ascontiguousarray(values.transpose(0, 2, 3, 1)))["y"]
    np.testing.assert_array_equal(last, wanted.transpose(0, 2, 3, 1))


def test_layout_and_cast() -> None:
    values = images(4, 5)
    first = run_step({"step": "layout"}, x=values)["y"]
    np.testing.assert_array_equal(first, values.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(run_step({"step": "layout", "to": "hwc"}, x=first)["y"], values)
    np.testing.assert_array_equal(run_step({"step": "cast", "dtype": "fp16"}, x=values)["y"], values.astype("f2"))


@few
@given(st.integers(2, 30), st.integers(0, 9), st.data())
def test_softmax_and_top_k_are_torchs(classes: int, seed: int, data: st.DataObject) -> None:
    values = np.random.default_rng(seed).normal(size=(4, classes)).astype(np.float32) * 5
    names = tuple(f"class {place}" for place in range(classes))
    found = run_step({"step": "softmax"}, x=values)["probabilities"]
    np.testing.assert_allclose(found, torch.from_numpy(values).softmax(1).numpy(), rtol=1e-5, atol=1e-7)
    k = data.draw(st.integers(1, classes))
    best = run_step({"step": "top_k", "k": k}, names, x=values)
    scores, places = torch.from_numpy(values).topk(k)
    np.testing.assert_array_equal(best["scores"], scores.numpy())
    np.testing.assert_array_equal(best["classes"], places.numpy())
    assert best["labels"].tolist() == [[names[place] for place in row] for row in places.tolist()]


@few
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 9))
def test_mean_pool_and_unit_length(tokens: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(3, tokens, width)).astype(np.float32)
    mask = (random.random((3, tokens)) > 0.5).astype(np.int64)
    found = run_step({"step": "mean_pool"}, vectors=vectors, mask=mask)["embedding"]
    count = np.maximum(mask.sum(1, keepdims=True), 1e-9)
    np.testing.assert_allclose(found, (vectors * mask[..., None]).sum(1) / count, rtol=1e-4, atol=1e-6)
    unit = run_step({"step": "unit_length"}, x=found)["y"]
    lengths = np.linalg.norm(unit, axis=1)
    assert np.all(np.isclose(lengths, 1, atol=1e-5) | ~mask.any(1))


def reference_boxes(boxes: np.ndarray, scores: np.ndarray, most: int, least: float, overlap: float) -> list[Any]:
    """Plain greedy suppression of one sample: (score, class, box), best first; boxes xyxy (n, 4), scores (n, c)."""
    found = []
    for kind in range(scores.shape[1]):
        order = [place for place in np.argsort(-scores[:, kind], kind="stable") if scores[place, kind] > least]
        kept: list[int] = []
        for place in order:
            if all(iou(boxes[place], boxes[other]) <= overlap for other in kept):
                kept.append(place)
        found += [(float(scores[place, kind]), kind, place) for place in kept]
    return sorted(found, key=lambda item: (-item[0], item[1], item[2]))[:most]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    left, top = np.maximum(one[:2], other[:2])
    right, bottom = np.minimum(one[2:], other[2:])
    inner = max(0.0, right - left) * max(0.0, bottom - top)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return inner / (areas - inner) if inner else 0.0


@few
@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 30), st.integers(0, 20), st.booleans())
def test_boxes_are_those_of_a_plain_suppression(count: int, classes: int, most: int, seed: int, joined: bool) -> None:
    random = np.random.default_rng(seed)
    centre, size = random.uniform(0, 20, (2, count, 2)), random.uniform(1, 12, (2, count, 2))
    scores = random.random((2, count, classes)).astype(np.float32)
    given_ = np.concatenate([centre, size], 2).astype(np.float32)
    half = np.float32(0.5) * given_[..., 2:]
    corners = np.concatenate([given_[..., :2] - half, given_[..., :2] + half], 2)
    table = {"step": "boxes", "most": most, "least_score": 0.3, "most_overlap": 0.4}
    if joined:
        found = run_step(table, x=np.ascontiguousarray(np.concatenate([given_, scores], 2).transpose(0, 2, 1)))
    else:
        found = run_step({**table, "form": "xyxy"}, corners=corners, chances=scores)
    for sample in range(2):
        wanted = reference_boxes(corners[sample], scores[sample], most, 0.3, 0.4)
        number = int(found["count"][sample, 0])
        assert number == len(wanted)
        np.testing.assert_array_equal(found["scores"][sample, :number], np.float32([item[0] for item in wanted]))
        assert found["classes"][sample, :number].tolist() == [item[1] for item in wanted]
        for row, item in enumerate(wanted):
            np.testing.assert_array_equal(found["boxes"][sample, row], corners[sample, item[2]])
        assert not found["boxes"][sample, number:].any()
        assert not found["scores"][sample, number:].any()


@pytest.mark.parametrize("opset", [OPSETS.start, 18, 20, OPSETS.stop - 1])
def test_nodes_mean_the_same_in_every_operator_set(opset: int) -> None:
    """A network's own operator set is kept when steps are put around it."""
    values = images(9, 7)
    table: list[dict[str, Any]] = [
        {"step": "resize", "shorter_side": 5, "inputs": ["x"]}, {"step": "crop", "height": 6, "width": 6},
        {"step": "normalise", "mean": [1.0, 2.0, 3.0]}, {"step": "layout"}, {"step": "unit_length", "outputs": ["y"]},
    ]  # fmt: skip
    found = resolved(table, [spec_of("x", values)])
    part = parts.whole(found, found.after)[0]
    name = part.gives[0].name
    model = graph.write(part, None, ())
    wanted = Session(model.SerializeToString()).run({"x": values})[name]
    model.opset_import[0].version = opset
    model.ir_version = max(8, onnx.helper.find_min_ir_version_for(model.opset_import))
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(Session(model.SerializeToString()).run({"x": values})[name], wanted)


@pytest.mark.parametrize(
    ("step", "array", "said"),
    [
        ({"step": "resize", "height": 3, "width": 3}, np.zeros((1, 4), "f4"), "three dimensions"),
        ({"step": "crop", "height": 3, "width": 3}, np.zeros((1, 3, 8, 8), "f4"), 'layout = "chw"'),
        ({"step": "normalise", "mean": [1.0, 2.0]}, np.zeros((1, 4, 4, 3), "f4"), "2 numbers in mean"),
        ({"step": "softmax"}, np.zeros((1, 4), "i8"), "floating-point"),
        ({"step": "top_k", "k": 5}, np.zeros((1, 4), "f4"), "k = 5"),
        ({"step": "top_k", "labels": ["a"]}, np.zeros((1, 4), "f4"), "1 labels"),
        ({"step": "boxes"}, np.zeros((1, 4, 9), "f4"), "4 + classes"),
        ({"step": "tokenize", "file": "x"}, np.zeros((1, 4), "f4"), "string[1]"),
    ],
)
def test_what_a_step_cannot_take_is_said_with_who_gives_it(step: dict[str, Any], array: np.ndarray, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        resolved([{**step, "inputs": ["x"]}], [spec_of("x", array)])
    assert said in str(error.value)
    assert f"({step['step']})" in str(error.value)
    assert str(list(array.shape[1:])) in str(error.value)


def test_labels_that_do_not_fit_the_data() -> None:
    with pytest.raises(RecipeError, match="the data names 2 classes"):
        run_step({"step": "top_k"}, ("a", "b"), x=np.zeros((1, 3), np.float32))


def test_every_step_has_one_form() -> None:
    for form in steps.TABLE.values():
        assert (form.write is None) != (form.python is None)
