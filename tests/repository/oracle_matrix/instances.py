"""Instances and what they run on."""

from __future__ import annotations

from oracle_matrix.models import HEAD, Case, io, python


def instances() -> dict[str, Case]:
    """Return the models by name."""
    groups = {
        "count": "kind: KIND_CPU count: 2",
        "count_zero": "kind: KIND_CPU count: 0",
        "count_negative": "kind: KIND_CPU count: -2",
        "cpu_with_gpus": "kind: KIND_CPU gpus: [ 0 ]",
        "gpu": "kind: KIND_GPU",
        "gpu_named": "kind: KIND_GPU gpus: [ 0 ]",
        "model": "kind: KIND_MODEL",
        "model_with_gpus": "kind: KIND_MODEL gpus: [ 0 ]",
        "auto": "count: 1",
        "profile": 'kind: KIND_CPU profile: [ "0" ]',
        "passive": "kind: KIND_CPU passive: true",
        "host_policy": 'kind: KIND_CPU host_policy: "p"',
        "secondary": "kind: KIND_CPU secondary_devices [ { kind: KIND_NVDLA device_id: 0 } ]",
        "rate": 'kind: KIND_CPU rate_limiter { resources [ { name: "R" count: 1 } ] priority: 1 }',
        "name": 'name: "g" kind: KIND_CPU',
    }
    head = HEAD + io()
    cases = {
        f"instance_group.{name}": python(f"{head}instance_group [ {{ {text} }} ]") for name, text in groups.items()
    }
    cases["instance_group.none"] = python(head)
    cases["instance_group.two_of_a_name"] = python(
        head + 'instance_group [ { name: "g" kind: KIND_CPU }, { name: "g" kind: KIND_CPU } ]'
    )
    return cases
