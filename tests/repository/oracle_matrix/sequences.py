# ruff: noqa: E501 - a table of protobuf text, one model a line
"""Sequences: controls, states and how slots are given."""

from __future__ import annotations

from oracle_matrix.models import ONE, Case, control, python


def sequences() -> dict[str, Case]:
    """Return the models by name."""
    good = "fp32_false_true: [ 0, 1 ]"
    corrid = "CONTROL_SEQUENCE_CORRID"
    state = 'input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: [ 1 ]'
    initial = 'name: "a" data_type: TYPE_FP32 dims: [ 1 ]'
    kinds = {
        "plain": "",
        "control.right": f"control_input [ {control('A', good)} ]",
        "control.twice": f"control_input [ {control('A', good)}, {control('B', good)} ]",
        "control.one_tensor_twice": f"control_input [ {control('A', good)}, {control('A', good, 'CONTROL_SEQUENCE_END')} ]",
        "control.no_value": f"control_input [ {control('A', '')} ]",
        "control.one_value": f"control_input [ {control('A', 'fp32_false_true: [ 1 ]')} ]",
        "control.three_values": f"control_input [ {control('A', 'int32_false_true: [ 0, 1, 2 ]')} ]",
        "control.two_types": f"control_input [ {control('A', good + ' int32_false_true: [ 0, 1 ]')} ]",
        "control.bool": f"control_input [ {control('A', 'bool_false_true: [ false, true ]', 'CONTROL_SEQUENCE_READY')} ]",
        "control.no_name": f"control_input [ {control('', good)} ]",
        "control.corrid": f"control_input [ {control('C', 'data_type: TYPE_UINT64', corrid)} ]",
        "control.corrid_text": f"control_input [ {control('C', 'data_type: TYPE_STRING', corrid)} ]",
        "control.corrid_no_type": f"control_input [ {control('C', '', corrid)} ]",
        "control.corrid_float": f"control_input [ {control('C', 'data_type: TYPE_FP32', corrid)} ]",
        "control.corrid_value": f"control_input [ {control('C', 'data_type: TYPE_UINT64 ' + good, corrid)} ]",
        "control.named_as_input": f"control_input [ {control('x', good)} ]",
        "oldest.right": "oldest { max_candidate_sequences: 4 preferred_batch_size: [ 2 ] }",
        "oldest.above": "oldest { max_candidate_sequences: 4 preferred_batch_size: [ 8 ] }",
        "oldest.zero": "oldest { max_candidate_sequences: 4 preferred_batch_size: [ 0 ] }",
        "oldest.no_candidates": "oldest { }",
        "direct.right": "direct { minimum_slot_utilization: 0.5 }",
        "direct.above": "direct { minimum_slot_utilization: 1.5 }",
        "direct.negative": "direct { minimum_slot_utilization: -0.5 }",
        "iterative": "iterative_sequence: true",
        "state.right": f"state [ {{ {state} }} ]",
        "state.no_dims": 'state [ { input_name: "s" output_name: "t" data_type: TYPE_FP32 } ]',
        "state.varies": 'state [ { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: [ -1 ] } ]',
        "state.no_type": 'state [ { input_name: "s" output_name: "t" dims: [ 1 ] } ]',
        "state.zero": f"state [ {{ {state} initial_state [ {{ {initial} zero_data: true }} ] }} ]",
        "state.file": f'state [ {{ {state} initial_state [ {{ {initial} data_file: "four" }} ] }} ]',
        "state.file_missing": f'state [ {{ {state} initial_state [ {{ {initial} data_file: "none" }} ] }} ]',
        "state.file_short": f'state [ {{ {state} initial_state [ {{ {initial} data_file: "two" }} ] }} ]',
        "state.file_long": f'state [ {{ {state} initial_state [ {{ {initial} data_file: "eight" }} ] }} ]',
        "state.no_data": f"state [ {{ {state} initial_state [ {{ {initial} }} ] }} ]",
        "state.initial_no_name": f"state [ {{ {state} initial_state [ {{ data_type: TYPE_FP32 dims: [ 1 ] zero_data: true }} ] }} ]",
        "state.initial_type": f'state [ {{ {state} initial_state [ {{ name: "a" data_type: TYPE_INT32 dims: [ 1 ] zero_data: true }} ] }} ]',
        "state.initial_dims": f'state [ {{ {state} initial_state [ {{ name: "a" data_type: TYPE_FP32 dims: [ 2 ] zero_data: true }} ] }} ]',
        "state.initial_varies": f'state [ {{ {state} initial_state [ {{ name: "a" data_type: TYPE_FP32 dims: [ -1 ] zero_data: true }} ] }} ]',
        "state.twice": f"state [ {{ {state} }}, {{ {state} }} ]",
        "state.two_initials": f"state [ {{ {state} initial_state [ {{ {initial} zero_data: true }}, {{ {initial} zero_data: true }} ] }} ]",
        "idle": "max_sequence_idle_microseconds: 100",
    }
    files = {"four": b"\0" * 4, "two": b"\0" * 2, "eight": b"\0" * 8}
    placed = {f"initial_state__{name}": content for name, content in files.items()}
    cases = {
        f"sequence.{name}": python(ONE + f"sequence_batching {{ {text} }}", **(placed if "state" in name else {}))
        for name, text in kinds.items()
    }
    flat = ONE.replace("max_batch_size: 4", "max_batch_size: 0")
    cases["sequence.without_batch"] = python(flat + "sequence_batching { }")
    cases["sequence.cached"] = python(ONE + "sequence_batching { } response_cache { enable: true }")
    cases["sequence.and_dynamic"] = python(ONE + "sequence_batching { } dynamic_batching { }")
    return cases
