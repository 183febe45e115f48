"""What config.pbtxt says to ONNX Runtime, in the vocabulary of Triton's native onnxruntime backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from repo_builder.core.errors import ServeError

Config = Mapping[str, Any]  # ModelConfig as JSON
Provider = tuple[str, dict[str, str]]  # name and options

CPU: Provider = ("CPUExecutionProvider", {})
_LEVELS = {"-1": "ORT_ENABLE_BASIC", "1": "ORT_ENABLE_EXTENDED", "2": "ORT_DISABLE_ALL"}
_GPU_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_CPU_PROVIDERS = {"openvino": "OpenVINOExecutionProvider"}
_CUDNN_SEARCH = ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")
_ARENA_STRATEGY = ("kNextPowerOfTwo", "kSameAsRequested")
_PRECISION_MODES = ("FP32", "FP16", "BF16", "INT8")
# the TensorRT accelerator's keys that are not the provider's own
_TENSORRT_KEYS = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}


def open_session(path: Path, config: Config, wanted: Sequence[Provider]) -> ort.InferenceSession:
    """Open a model on execution providers, in this order, and make sure that it runs on them.

    Raises:
        ServeError: The file cannot be loaded, or ONNX Runtime left a provider out.
    """
    names = [name for name, _ in wanted]
    options = session_options(config)
    try:
        session = ort.InferenceSession(str(path), options, providers=list(wanted))
    except Exception as error:  # its classes derive from Exception alone
        raise ServeError(f"ONNX Runtime {ort.__version__} cannot load the model: {error}", where=str(path)) from None
    session.disable_fallback()
    if session.get_providers()[: len(names)] != names:
        there = ", ".join(session.get_providers())
        raise ServeError(f"asked for {', '.join(names)}, but ONNX Runtime would run on {there}", where=str(path))
    return session


def session_options(config: Config) -> ort.SessionOptions:
    """Return the session options that ``parameters`` and ``optimization.graph`` ask for.

    Raises:
        ServeError: A value is not one that the native backend takes.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    level = _LEVELS.get(str(_nested(config, "optimization", "graph").get("level", 0)), "ORT_ENABLE_ALL")
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads = number(config, "intra_op_thread_count", 0)
    # Threads that spin between requests take the cores that Triton needs: measured on two cores with two threads, a
    # third of the throughput and two thirds more CPU time for each inference.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.inter_op_num_threads = number(config, "inter_op_thread_count", 0)
    parallel = number(config, "execution_mode", 0, below=2)
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = bool(number(config, "enable_mem_arena", 1, below=2))
    options.enable_mem_pattern = bool(number(config, "enable_mem_pattern", 1, below=2))
    if value := parameter(config, "session.use_device_allocator_for_initializers"):
        options.add_session_config_entry("session.use_device_allocator_for_initializers", value)
    for library in _nested(config, "model_operations").get("op_library_filename", []):
        options.register_custom_ops_library(library)
    return options


def run_options(config: Config) -> ort.RunOptions | None:
    """Return the options of every run, None where the configuration has none."""
    key = "memory.enable_memory_arena_shrinkage"
    value = parameter(config, key)
    if not value:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry(key, value)
    return options


def providers(config: Config, *, kind: str, device: str) -> list[Provider]:
    """Return the execution providers that the configuration asks for, the most wanted first.

    Args:
        config: The model's configuration.
        kind: Kind of the instance: ``CPU`` or ``GPU``.
        device: Number of the instance's GPU.

    Raises:
        ServeError: One is unknown, or the installed ONNX Runtime has no such provider.
    """
    accelerators = _nested(config, "optimization", "execution_accelerators")
    chosen: list[Provider] = []
    if kind == "GPU":
        asked = _known(accelerators.get("gpu_execution_accelerator", []), _GPU_PROVIDERS)
        if "tensorrt" in asked:
            chosen.append((_GPU_PROVIDERS["tensorrt"], {**tensorrt_options(asked["tensorrt"]), "device_id": device}))
        options = {**cuda_options(config), **asked.get("cuda", {}), "device_id": device}
        chosen.append((_GPU_PROVIDERS["cuda"], options))
    asked = _known(accelerators.get("cpu_execution_accelerator", []), _CPU_PROVIDERS)
    chosen.extend((_CPU_PROVIDERS[name], {}) for name in asked)
    there = ort.get_available_providers()
    for name, _ in chosen:
        if name not in there:
            raise ServeError(
                f"the configuration asks for {name}, and ONNX Runtime {ort.__version__} has only {', '.join(there)}",
                hint="install onnxruntime-gpu in place of onnxruntime, or build the model for KIND_CPU",
            )
    return [*chosen, CPU]


def tensorrt_options(given: Mapping[str, str]) -> dict[str, str]:
    """Turn the ``tensorrt`` accelerator's parameters into options of the provider.

    Raises:
        ServeError: The precision mode is unknown.
    """
    options = {_TENSORRT_KEYS.get(key, key): value for key, value in given.items() if key != "precision_mode"}
    precision = given.get("precision_mode", "FP32")
    if precision not in _PRECISION_MODES:
        raise ServeError(f"the precision mode '{precision}' is none of {', '.join(_PRECISION_MODES)}")
    if precision != "FP32":
        options[f"trt_{precision.lower()}_enable"] = "1"
    return options


def cuda_options(config: Config) -> dict[str, str]:
    """Return the options of the CUDA provider that stand among ``parameters``.

    Raises:
        ServeError: A value is not one that the native backend takes.
    """
    options = {}
    for key in ("gpu_mem_limit", "do_copy_in_default_stream"):
        if value := parameter(config, key):
            options[key] = value
    for key, words in (("cudnn_conv_algo_search", _CUDNN_SEARCH), ("arena_extend_strategy", _ARENA_STRATEGY)):
        if parameter(config, key):
            options[key] = words[number(config, key, 0, below=len(words))]
    return options


def parameter(config: Config, key: str) -> str | None:
    """Return one of ``parameters``, None where it is not set."""
    value: str | None = _nested(config, "parameters", key).get("string_value")
    return value


def number(config: Config, key: str, default: int, *, below: int = 1 << 16) -> int:
    """Return one of ``parameters`` as a whole number; true and false are 1 and 0.

    Raises:
        ServeError: It is no whole number from 0 to ``below`` - 1.
    """
    text = parameter(config, key)
    if not text:
        return default
    text = {"true": "1", "false": "0"}.get(text.lower(), text)
    if not text.isdecimal() or int(text) >= below:
        raise ServeError(f"parameter '{key}' is '{text}', not a whole number from 0 to {below - 1}")
    return int(text)


def _known(accelerators: Sequence[Config], known: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return accelerators by name, with their parameters."""
    for item in accelerators:
        if item["name"] not in known:
            raise ServeError(f"the execution accelerator '{item['name']}' is none of {', '.join(sorted(known))}")
    return {item["name"]: dict(item.get("parameters", {})) for item in accelerators}


def _nested(config: Config, *keys: str) -> Config:
    for key in keys:
        config = config.get(key) or {}
    return config
