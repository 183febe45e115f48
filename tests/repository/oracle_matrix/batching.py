# ruff: noqa: E501 - a table of protobuf text, one model a line
"""Batching: sizes, queues, priorities, batch inputs and outputs."""

from __future__ import annotations

from oracle_matrix.models import ONE, Case, python


def batching() -> dict[str, Case]:
    """Return the models by name."""
    dynamic = {
        "plain": "",
        "preferred": "preferred_batch_size: [ 2, 4 ]",
        "preferred_above": "preferred_batch_size: [ 8 ]",
        "preferred_zero": "preferred_batch_size: [ 0 ]",
        "preferred_negative": "preferred_batch_size: [ -1 ]",
        "delay": "max_queue_delay_microseconds: 100",
        "delay_negative": "max_queue_delay_microseconds: -1",
        "ordered": "preserve_ordering: true",
        "ordered_one_level": "preserve_ordering: true priority_levels: 1 default_priority_level: 1",
        "ordered_two_levels": "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
        "ordered_delay": "preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 9 }",
        "ordered_reject": "preserve_ordering: true default_queue_policy { default_timeout_microseconds: 9 }",
        "ordered_delay_of_level": "preserve_ordering: true priority_levels: 1 default_priority_level: 1 "
        "priority_queue_policy { key: 1 value: { timeout_action: DELAY default_timeout_microseconds: 9 } }",
        "levels": "priority_levels: 3 default_priority_level: 3",
        "levels_default_above": "priority_levels: 3 default_priority_level: 5",
        "levels_no_default": "priority_levels: 3",
        "default_without_levels": "default_priority_level: 2",
        "policy": "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 2 value: { max_queue_size: 1 } }",
        "policy_of_none": "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 7 value: { max_queue_size: 1 } }",
        "policy_of_zero": "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 0 value: { max_queue_size: 1 } }",
        "policy_without_levels": "priority_queue_policy { key: 7 value: { max_queue_size: 1 } }",
        "queue_size": "default_queue_policy { max_queue_size: 4 allow_timeout_override: true }",
    }
    cases = {
        f"dynamic_batching.{name}": python(ONE + f"dynamic_batching {{ {text} }}") for name, text in dynamic.items()
    }
    flat = ONE.replace("max_batch_size: 4", "max_batch_size: 0")
    cases["dynamic_batching.without_batch"] = python(flat + "dynamic_batching { }")
    cases["dynamic_batching.preferred_without_batch"] = python(flat + "dynamic_batching { preferred_batch_size: 1 }")
    for size in (-1, 0, 1, 2147483647, 2147483648):
        cases[f"max_batch_size.{size}"] = python(ONE.replace("max_batch_size: 4", f"max_batch_size: {size}"))
    source = 'kind: BATCH_ELEMENT_COUNT target_name: "i" data_type: TYPE_FP32'
    into = {
        "right": f'{{ {source} source_input: "x" }}',
        "unknown_source": f'{{ {source} source_input: "none" }}',
        "no_source": f"{{ {source} }}",
        "two_sources": f'{{ {source} source_input: [ "x", "x" ] }}',
        "type": f'{{ {source.replace("FP32", "INT64")} source_input: "x" }}',
        "item_shape": '{ kind: BATCH_ITEM_SHAPE target_name: "i" data_type: TYPE_INT32 source_input: "x" }',
        "no_target": '{ kind: BATCH_ELEMENT_COUNT data_type: TYPE_FP32 source_input: "x" }',
    }
    cases |= {f"batch_input.{name}": python(ONE + f"batch_input [ {text} ]") for name, text in into.items()}
    scatter = "kind: BATCH_SCATTER_WITH_INPUT_SHAPE"
    out = {
        "right": f'{{ {scatter} target_name: "y" source_input: "x" }}',
        "unknown_target": f'{{ {scatter} target_name: "none" source_input: "x" }}',
        "unknown_source": f'{{ {scatter} target_name: "y" source_input: "none" }}',
        "no_source": f'{{ {scatter} target_name: "y" }}',
        "twice": f'{{ {scatter} target_name: [ "y", "y" ] source_input: "x" }}',
    }
    cases |= {f"batch_output.{name}": python(ONE + f"batch_output [ {text} ]") for name, text in out.items()}
    return cases
