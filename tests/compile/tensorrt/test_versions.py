"""The versions table and every name that is used, against what the published bindings offer.

tensorrt_bindings.json was recorded from the wheels by record_tensorrt_bindings.py; see there how.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from repo_builder.compile.tensorrt.versions import TACTIC_SOURCES, dialect, strongly_typed, why_no_float8
from repo_builder.core.errors import CompileError

PACKAGE = Path(__file__).resolve().parents[3] / "repo_builder"
SOURCES = [
    *sorted((PACKAGE / "compile/tensorrt").glob("*.py")),
    *sorted((PACKAGE / "serve/backends/tensorrt").glob("*.py")),
]
RECORDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "tensorrt_bindings.json").read_text())
# Names of TensorRT's that are reached through objects, which the source does not tell from others.
USED = {
    "Builder": "create_network create_builder_config create_optimization_profile build_serialized_network max_threads",
    "IBuilderConfig": "set_memory_pool_limit set_tactic_sources profiling_verbosity set_flag clear_flag"
    " add_optimization_profile avg_timing_iterations create_timing_cache set_timing_cache get_timing_cache",
    "INetworkDefinition": "num_layers get_layer num_inputs get_input",
    "ILayer": "type name num_outputs get_output",
    "ITensor": "name shape dtype",
    "IOptimizationProfile": "set_shape",
    "OnnxParser": "parse num_errors get_error",
    "ParserError": "desc node",
    "ITimingCache": "serialize",
    "Runtime": "deserialize_cuda_engine",
    "ICudaEngine": "create_execution_context create_engine_inspector num_io_tensors get_tensor_name get_tensor_mode"
    " get_tensor_dtype get_tensor_shape get_tensor_profile_shape num_optimization_profiles",
    "EngineInspector": "get_engine_information",
    "IExecutionContext": "set_input_shape set_tensor_address execute_async_v3 set_optimization_profile_async"
    " get_tensor_shape profiler",
    "ILogger": "log INTERNAL_ERROR ERROR WARNING",
}
# Every method that is called, or overridden, and the parameters that its arguments are for, all given by position.
CALLED = {
    "Builder": {
        "__init__": "logger",
        "create_network": "flags",
        "create_builder_config": "",
        "create_optimization_profile": "",
        "build_serialized_network": "network config",
    },
    "IBuilderConfig": {
        "set_memory_pool_limit": "pool pool_size",
        "set_tactic_sources": "tactic_sources",
        "set_flag": "flag",
        "clear_flag": "flag",
        "add_optimization_profile": "profile",
        "create_timing_cache": "serialized_timing_cache",
        "set_timing_cache": "cache ignore_mismatch",
        "get_timing_cache": "",
    },
    "INetworkDefinition": {"get_layer": "index", "get_input": "index"},
    "ILayer": {"get_output": "index", "set_output_type": "index dtype"},
    "IOptimizationProfile": {"set_shape": "input min opt max"},
    "OnnxParser": {"__init__": "network logger", "parse": "model path", "get_error": "index"},
    "ParserError": {"desc": "", "node": "", "node_name": "", "node_operator": ""},
    "ITimingCache": {"serialize": ""},
    "Runtime": {"__init__": "logger", "deserialize_cuda_engine": "serialized_engine"},
    "ICudaEngine": {
        "create_execution_context": "",
        "create_engine_inspector": "",
        "get_tensor_name": "index",
        "get_tensor_mode": "name",
        "get_tensor_dtype": "name",
        "get_tensor_shape": "name",
        "get_tensor_profile_shape": "name profile_index",
    },
    "EngineInspector": {"get_engine_information": "format"},
    "IExecutionContext": {
        "set_input_shape": "name shape",
        "set_tensor_address": "name memory",
        "execute_async_v3": "stream_handle",
        "set_optimization_profile_async": "profile_index stream_handle",
        "get_tensor_shape": "name",
    },
    "ILogger": {"__init__": "", "log": "severity msg"},
    "IProgressMonitor": {
        "__init__": "",
        "phase_start": "phase_name parent_phase num_steps",
        "step_complete": "phase_name step",
        "phase_finish": "phase_name",
    },
}


def names_in_sources() -> set[tuple[str, str]]:
    """Every ``trt.Class.name`` that the sources write out."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                inner = node.value
                if isinstance(inner.value, ast.Name) and inner.value.id == "trt":
                    found.add((inner.attr, node.attr))
    return found


@pytest.fixture(params=sorted(RECORDED))
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def offers(version: str, kind: str, name: str) -> bool:
    record = RECORDED[version]
    return name in record["classes"].get(kind, ()) or name in record["enums"].get(kind, ())


def test_every_enum_and_class_that_is_written_out_exists(version: str) -> None:
    weak = {("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS")}
    wanted = names_in_sources() - {("IProgressMonitor", "__init__"), ("ILogger", "__init__")}
    if not dialect(version).weakly_typed:
        wanted -= weak
    assert wanted > {("TensorIOMode", "INPUT"), ("MemoryPoolType", "WORKSPACE")}
    assert [item for item in sorted(wanted) if not offers(version, *item)] == []


def test_every_method_that_is_called_exists(version: str) -> None:
    missing = [
        (kind, name) for kind, names in USED.items() for name in names.split() if not offers(version, kind, name)
    ]
    assert missing == []


def takes(signature: str, parameters: list[str]) -> bool:
    """Whether a method can be called with arguments for just these parameters, by position."""
    itself, *rest = re.split(r", (?=\w+: )", signature.partition("(")[2].rpartition(") -> ")[0])
    names = [item.partition(":")[0] for item in rest[: len(parameters)]]
    return (
        itself.startswith("self: ") and names == parameters and all(" = " in item for item in rest[len(parameters) :])
    )


def test_methods_take_the_arguments_that_they_are_given(version: str) -> None:
    for kind, methods in CALLED.items():
        for name, parameters in methods.items():
            if offers(version, kind, name):  # what a version may lack, the table says
                overloads = RECORDED[version]["classes"][kind][name].split("\n")
                assert any(takes(line, parameters.split()) for line in overloads), overloads


def test_of_no_method_that_is_called_the_arguments_are_unproven(version: str) -> None:
    """A property has no signature; what has one is a method."""
    methods = {
        (kind, name)
        for kind, names in USED.items()
        for name in names.split()
        if "(" in RECORDED[version]["classes"][kind].get(name, "")
    }
    assert methods <= {(kind, name) for kind, names in CALLED.items() for name in names}


def test_overloads_and_defaults_are_told_apart() -> None:
    line = "f(self: a.B, name: str, sizes: Tuple[int, int], kind: a.Kind = <Kind.X: 0>) -> bool"
    assert takes(line, ["name", "sizes"])
    assert takes(line, ["name", "sizes", "kind"])
    assert not takes(line, ["name"])
    assert not takes(line, ["sizes", "name"])
    assert not takes("f(*args, **kwargs)", [])


def test_tactic_sources_exist_everywhere(version: str) -> None:
    assert all(offers(version, "TacticSource", name) for name in TACTIC_SOURCES)


def test_the_table_says_what_the_bindings_have(version: str) -> None:
    row = dialect(version)
    assert all(offers(version, "NetworkDefinitionCreationFlag", name) for name in row.network_flags)
    assert row.optimization_level == offers(version, "IBuilderConfig", "builder_optimization_level")
    monitor = ["phase_start", "step_complete", "phase_finish"]
    assert row.progress_monitor == all(offers(version, "IProgressMonitor", name) for name in monitor)
    assert row.progress_monitor == offers(version, "IBuilderConfig", "progress_monitor")
    assert row.names_refused_node == offers(version, "ParserError", "node_name")
    assert row.names_refused_node == offers(version, "ParserError", "node_operator")
    for kind, names in {"BuilderFlag": ("INT8", "FP16"), "ILayer": ("precision", "set_output_type")}.items():
        assert [offers(version, kind, name) for name in names] == [row.weakly_typed] * 2


def test_strong_typing_is_asked_for_where_it_is_the_only_one() -> None:
    assert dialect("11.0.0.114").network_flags == ("STRONGLY_TYPED",)
    assert dialect("10.13.3.9").weakly_typed


def test_fp8_is_of_versions_that_can_be_strongly_typed_and_of_gpus_that_have_it(version: str) -> None:
    row = dialect(version)
    assert not row.float8 or offers(version, "DataType", "FP8")
    assert row.float8 == offers(version, "NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    typed = strongly_typed(row)
    assert (typed.network_flags, typed.weakly_typed) == (("STRONGLY_TYPED",), False)
    assert bool(why_no_float8(version, "9.0")) != row.float8
    assert why_no_float8(version, "8.6")


def test_versions_between_rows_take_the_row_before() -> None:
    assert dialect("8.5.3.1") == dialect("8.5.0.12")
    assert dialect("10.16.1.11") == dialect("10.0.1")
    assert dialect("12.1") == dialect("11.0.0")


def test_an_old_version_is_refused() -> None:
    with pytest.raises(CompileError, match=r"TensorRT 8\.4\.1 is too old"):
        dialect("8.4.1")
