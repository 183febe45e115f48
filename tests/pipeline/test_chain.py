"""Who takes what of whom, and what is said where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from repo_builder.core import codec
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import MeasureSpec, ModelSpec, PipelineSpec
from repo_builder.core.tensors import DType
from repo_builder.pipeline import parts
from repo_builder.pipeline.around import compiled
from repo_builder.pipeline.chain import Chain, resolve
from repo_builder.pipeline.scored import Scored, scored

IMAGE = {"inputs": [{"name": "pixels", "dtype": "fp32", "shape": [3, 8, 8]}]}
TEXT = {"inputs": [{"name": "input_ids", "dtype": "int64", "shape": [-1]}]}
LOGITS = {"outputs": [{"name": "logits", "dtype": "fp32", "shape": [4]}]}
VECTORS = {"outputs": [{"name": "vectors", "dtype": "fp32", "shape": [-1, 6]}]}
ENCODED = {"name": "image", "dtype": "string", "shape": [1]}
DECODE: list[dict[str, Any]] = [
    {"step": "decode_image"}, {"step": "resize", "height": 8, "width": 8}, {"step": "normalise"}, {"step": "layout"},
]  # fmt: skip
NAMED = [{**DECODE[0], "inputs": ["image"]}, *DECODE[1:]]
TOKENIZE: list[dict[str, Any]] = [{"step": "tokenize", "file": "tokenizer.json"}]


def chain(before: list[dict[str, Any]], after: list[dict[str, Any]], *model: dict[str, Any], **table: Any) -> Chain:
    spec = codec.build(PipelineSpec, {"before": before, "after": after, **table})
    sides = {name: side for item in model for name, side in item.items()}
    return resolve(spec, codec.build(ModelSpec, {"source": "n.onnx", **sides}))


def test_tensors_flow_from_the_file_to_the_labels() -> None:
    found = chain(DECODE, [{"step": "softmax"}, {"step": "top_k", "k": 2}], IMAGE, LOGITS)
    assert [str(item) for item in found.inputs] == ["image string[1]"]
    assert [str(item) for item in found.outputs] == ["classes int64[2]", "scores fp32[2]", "labels string[2]"]
    assert [item.name for item in found.network.takes] == [found.before[-1].gives[0].name]
    assert len({item.name for link in found.links for item in link.gives}) == sum(len(k.gives) for k in found.links)


def test_a_step_behind_the_network_takes_what_one_before_it_gave() -> None:
    found = chain(TOKENIZE, [{"step": "mean_pool"}, {"step": "unit_length"}], TEXT, VECTORS)
    assert [item.name for item in found.after[0].takes] == ["vectors", "attention_mask"]
    assert [str(item) for item in found.outputs] == ["embedding fp32[6]"]
    assert found.after[-1].gives[0].name == "embedding"  # what clients see is not the tensor of that name before it
    assert found.after[0].gives[0].name != "embedding"


def test_outputs_are_those_that_nobody_takes_or_those_named() -> None:
    after = [{"step": "softmax"}, {"step": "top_k", "inputs": ["probabilities"]}]
    assert [item.name for item in chain(DECODE, after, IMAGE, LOGITS).outputs] == ["classes", "scores", "labels"]
    named = chain(DECODE, after, IMAGE, LOGITS, outputs=["logits", "labels"])
    assert [item.name for item in named.outputs] == ["logits", "labels"]


def test_a_network_takes_several_inputs_by_their_names_and_what_clients_send_besides() -> None:
    both = {"inputs": [*IMAGE["inputs"], {"name": "age", "dtype": "fp32", "shape": [1]}]}
    before = [*DECODE[:-1], {"step": "layout", "outputs": ["pixels"]}]
    found = chain(before, [], both, LOGITS)
    assert [item.name for item in found.inputs] == ["image", "age"]


@pytest.mark.parametrize(
    ("before", "after", "table", "said"),
    [
        (DECODE[:3], [], {}, "the network takes pixels fp32[3, 8, 8] → add the step layout"),
        ([DECODE[0], {**DECODE[1], "layout": "chw"}], [], {}, 'layout = "hwc", and pipeline.before[0] (decode_image)'),
        ([{"step": "decode_image", "height": 8, "width": 8}, {"step": "layout"}], [], {}, 'cast with dtype = "fp32"'),
        ([{"step": "resize", "height": 8, "width": 8}], [], {}, "declare what clients send with [[pipeline.inputs]]"),
        (DECODE, [{"step": "softmax", "inputs": ["logit"]}], {}, "nothing gives it → did you mean 'logits'?"),
        (DECODE, [{"step": "mean_pool"}], {}, "takes 'attention_mask', and nothing gives it"),
        (DECODE, [{"step": "boxes"}], {}, "the network gives 'logits' fp32[4]"),
        (DECODE, [{"step": "top_k", "labels": ["a"]}], {}, "has 1 labels"),
        (DECODE, [{"step": "top_k", "outputs": ["a", "b", "c", "d"]}], {}, "gives 3 tensors"),
        (DECODE, [{"step": "softmax"}], {"outputs": ["probability"]}, "did you mean 'probabilities'?"),
        (NAMED, [], {"inputs": [ENCODED, {**ENCODED, "name": "other"}]}, "pipeline.inputs: nothing takes 'other'"),
        (DECODE, [], {"inputs": [ENCODED, ENCODED]}, "names an input twice"),
        (DECODE, [{"step": "softmax", "outputs": ["image"]}], {}, "'image' is an input and an output"),
    ],
)  # fmt: skip
def test_what_does_not_fit_names_both_ends(
    before: list[dict[str, Any]], after: list[dict[str, Any]], table: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError) as error:
        chain(before, after, IMAGE, LOGITS, **table)
    assert said in str(error.value)


def test_samples_on_another_axis_are_refused() -> None:
    with pytest.raises(RecipeError, match="on axis 1"):
        chain(DECODE, [], {"inputs": [{**IMAGE["inputs"][0], "batch_axis": 1}]}, LOGITS)


def kinds(found: Chain, **how: Any) -> list[str]:
    return [part.kind for part in parts.split(found, **{"fuse": None, "why_not": "", **how})]


def test_what_can_be_one_graph_is_one() -> None:
    found = chain(DECODE, [{"step": "softmax"}], IMAGE, LOGITS)
    assert kinds(found) == ["decode_image", "network"]
    assert kinds(found, fuse=False) == ["decode_image", "steps", "network", "steps"]
    assert kinds(found, why_not="the target is tensorrt") == ["decode_image", "steps", "network", "steps"]
    pixels = [{"name": "image", "dtype": "uint8", "shape": [-1, -1, 3]}]
    plain = chain(DECODE[1:], [{"step": "softmax"}], IMAGE, LOGITS, inputs=pixels)
    assert kinds(plain) == kinds(plain, fuse=True) == ["network"]
    assert kinds(plain, fuse=False) == ["steps", "network", "steps"]


def test_fuse_is_refused_where_it_is_impossible() -> None:
    found = chain(DECODE, [], IMAGE, LOGITS)
    with pytest.raises(RecipeError, match=r"pipeline.before\[0\] \(decode_image\) is Python"):
        parts.split(found, fuse=True, why_not="")
    plain = chain(DECODE[1:], [], IMAGE, LOGITS, inputs=[{"name": "image", "dtype": "uint8", "shape": [-1, -1, 3]}])
    with pytest.raises(RecipeError, match="the target is tensorrt"):
        parts.split(plain, fuse=True, why_not="the target is tensorrt")


def test_a_part_gives_only_what_somebody_takes() -> None:
    found = chain(TOKENIZE, [{"step": "mean_pool"}], TEXT, VECTORS)
    first, second = parts.split(found, fuse=None, why_not="")
    assert [item.name for item in first.gives] == ["input_ids", "attention_mask"]
    assert [item.name for item in second.takes] == ["input_ids", "attention_mask"]
    assert [item.name for item in second.gives] == ["embedding"]


def test_casts_stand_around_a_network_that_was_compiled_to_other_types() -> None:
    """TensorRT before 10 has int32 where the network says int64."""
    ids = {"outputs": [{"name": "ids", "dtype": "int64", "shape": [-1]}]}
    found = chain(TOKENIZE, [{"step": "cast", "dtype": "fp32", "outputs": ["floats"]}], TEXT, ids)
    narrow = {side: [replace(item, dtype=DType.INT32) for item in specs] for side, specs in (
        ("inputs", found.network.binds), ("outputs", found.network.yields),
    )}  # fmt: skip
    around = compiled(found, **narrow)
    assert [link.kind for link in around.links] == ["tokenize", "cast", "network", "cast", "cast"]
    assert around.network.takes[0].dtype is around.network.gives[0].dtype is DType.INT32
    assert around.outputs == found.outputs
    assert kinds(around, why_not="the target is tensorrt") == ["tokenize", "steps", "network", "steps"]
    assert compiled(found, found.network.binds, found.network.yields) is found


def test_what_is_scored_is_one_number_a_class_or_the_best_of_them() -> None:
    both = [{"step": "softmax"}, {"step": "top_k", "k": 2, "inputs": ["probabilities"]}]
    best = chain(DECODE, both, IMAGE, LOGITS)
    classes = ("a", "b", "c", "d")
    assert scored(best, MeasureSpec(), classes) == Scored(name="scores", ranked=("classes", "scores"), width=4)
    shown = chain(DECODE, both, IMAGE, LOGITS, outputs=["scores", "probabilities", "classes"])
    assert scored(shown, MeasureSpec(), classes) == Scored(name="probabilities")
    assert scored(chain(DECODE, both[:1], IMAGE, LOGITS), MeasureSpec(), ("0", "1")) == Scored(name="probabilities")
    assert scored(best, MeasureSpec(), ()) == Scored(name="classes")
    labels = chain(DECODE, both, IMAGE, LOGITS, outputs=["labels"])
    assert scored(labels, MeasureSpec(task="other"), classes) == Scored(name="labels")
    with pytest.raises(RecipeError, match="nothing can be scored"):
        scored(labels, MeasureSpec(), classes)
