"""The parameters of Triton's onnxruntime backend that stand in config.pbtxt, and the values they take."""

from __future__ import annotations

from collections.abc import Mapping

from repo_builder.core.errors import RepositoryError

# parameter → one above the largest whole number that it takes
_NUMBERS = {
    "intra_op_thread_count": 1 << 16,
    "inter_op_thread_count": 1 << 16,
    "execution_mode": 2,
    "enable_mem_arena": 2,
    "enable_mem_pattern": 2,
    "cudnn_conv_algo_search": 3,
    "arena_extend_strategy": 2,
}
_WORDS = {"true": "1", "false": "0"}


def wrong(key: str, value: str) -> str:
    """Say what is wrong with a parameter's value; empty where nothing is, or nobody reads the parameter."""
    below = _NUMBERS.get(key)
    text = _WORDS.get(value.lower(), value)
    if below is None or not value or (text.isascii() and text.isdecimal() and int(text) < below):
        return ""
    return f"parameter '{key}' is '{value}', not a whole number from 0 to {below - 1}"


def refuse(parameters: Mapping[str, str]) -> None:
    """Refuse values that the backend does not take.

    Raises:
        RepositoryError: Naming the first one.
    """
    for key, value in parameters.items():
        if message := wrong(key, value):
            raise RepositoryError(message, where="config.pbtxt")
