# ruff: noqa: E501 - a table of protobuf text, one model a line
"""Ensembles, and the models that they are made of."""

from __future__ import annotations

from oracle_matrix.models import CPU, HEAD, ONE, Case, ensemble, io, python, step


def ensembles() -> dict[str, Case]:
    """Return the models by name."""
    return {
        "ensemble.right": ensemble(step("sound")),
        "ensemble.two_steps": ensemble(step("sound", out="m"), step("sound", into="m")),
        "ensemble.two_steps_turned": ensemble(step("sound", into="m"), step("sound", out="m")),
        "ensemble.no_step": Case(
            text='platform: "ensemble"\nmax_batch_size: 4\n' + io() + "ensemble_scheduling { }", folders=("1",)
        ),
        "ensemble.no_scheduling": Case(text='platform: "ensemble"\nmax_batch_size: 4\n' + io(), folders=("1",)),
        "ensemble.no_platform": Case(
            text="max_batch_size: 4\n" + io() + f"ensemble_scheduling {{ step [ {{ {step('sound')} }} ] }}",
            folders=("1",),
        ),
        "ensemble.no_version_folder": Case(text=ensemble(step("sound")).text),
        "ensemble.unknown_model": ensemble(step("nobody")),
        "ensemble.no_model_name": ensemble(step("")),
        "ensemble.broken_model": ensemble(step("broken")),
        "ensemble.itself": ensemble(step("ensemble.itself")),
        "ensemble.there": ensemble(step("ensemble.back")),
        "ensemble.back": ensemble(step("ensemble.there")),
        "ensemble.round_a": ensemble(step("ensemble.round_b")),
        "ensemble.round_b": ensemble(step("ensemble.round_c")),
        "ensemble.round_c": ensemble(step("ensemble.round_a")),
        "ensemble.of_ensemble": ensemble(step("ensemble.right")),
        "ensemble.of_broken_ensemble": ensemble(step("ensemble.unknown_model")),
        "ensemble.cycle": ensemble(step("sound", into="y", out="m"), step("sound", into="m")),
        "ensemble.unknown_key_in": ensemble(step("sound", key_in="z")),
        "ensemble.unknown_key_out": ensemble(step("sound", key_out="z")),
        "ensemble.no_input_map": ensemble('model_name: "sound" model_version: -1 output_map { key: "y" value: "y" }'),
        "ensemble.no_output_map": ensemble('model_name: "sound" model_version: -1 input_map { key: "x" value: "x" }'),
        "ensemble.unmade": ensemble(step("sound", into="nothing")),
        "ensemble.output_unmade": ensemble(step("sound", out="other")),
        "ensemble.made_twice": ensemble(step("sound"), step("sound")),
        "ensemble.unused": ensemble(step("sound"), step("sound", out="spare")),
        "ensemble.other_dims": ensemble(step("sound"), dims="5"),
        "ensemble.varying_dims": ensemble(step("sound"), dims="-1"),
        "ensemble.other_type": ensemble(step("whole")),
        "ensemble.batch_above": ensemble(step("sound"), batch=8),
        "ensemble.batch_below": ensemble(step("sound"), batch=2),
        "ensemble.no_batch": ensemble(step("sound"), batch=0),
        "ensemble.no_batch_whole": ensemble(step("sound"), batch=0, dims="-1, 4"),
        "ensemble.batch_of_unbatched": ensemble(step("flat")),
        "ensemble.unbatched": ensemble(step("flat"), batch=0),
        "ensemble.version": ensemble(step("sound", version=1)),
        "ensemble.version_gone": ensemble(step("sound", version=9)),
        "ensemble.version_zero": ensemble(step("sound", version=0)),
        "ensemble.instance_group": ensemble(step("sound"), more=CPU),
        "ensemble.dynamic_batching": ensemble(step("sound"), more="dynamic_batching { }"),
        "ensemble.warmup": ensemble(
            step("sound"),
            more='model_warmup [ { name: "w" batch_size: 1 inputs { key: "x" value: { data_type: TYPE_FP32 dims: 4 zero_data: true } } } ]',
        ),
        "ensemble.optimization": ensemble(step("sound"), more="optimization { priority: PRIORITY_MAX }"),
        "ensemble.cache": ensemble(step("sound"), more="response_cache { enable: true }"),
        "ensemble.backend": ensemble(step("sound"), more='backend: "python"'),
        "ensemble.decoupled": ensemble(step("many")),
        "ensemble.sequence": ensemble(step("sequential")),
        "ensemble.optional_left_out": ensemble(step("choosy")),
    }


# What ensembles are made of.


PARTS: dict[str, Case] = {
    "sound": python(ONE),
    "broken": python(ONE + "max_batchsize: 3"),
    "whole": python(HEAD + io("INT32") + CPU),
    "flat": python(ONE.replace("max_batch_size: 4", "max_batch_size: 0")),
    "many": python(ONE + "model_transaction_policy { decoupled: true }"),
    "sequential": python(ONE + "sequence_batching { }"),
    "choosy": python(ONE + 'input [ { name: "z" data_type: TYPE_FP32 dims: [ 4 ] optional: true } ]'),
}
