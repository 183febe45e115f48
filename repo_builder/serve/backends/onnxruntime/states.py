"""Implicit states of sequences: what Triton's native backends keep in the server, kept here beside the session.

Triton gives all requests of a sequence to one instance, and one of them at a time, so each instance keeps its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repo_builder.core.errors import ServeError
from repo_builder.core.tensors import Array
from repo_builder.serve.backends.onnxruntime.feeds import DTYPES, Feed
from repo_builder.serve.backends.onnxruntime.settings import Config

_START, _END = 1, 2  # TRITONSERVER_REQUEST_FLAG_SEQUENCE_START and _END
_IDLE_US = 1_000_000  # Triton's default of max_sequence_idle_microseconds


class State(NamedTuple):
    """A state.

    Attributes:
        taken: The model's input that takes it.
        given: The model's output that gives the next one.
        first: What a sequence begins with.
    """

    taken: str
    given: str
    first: Array


class States:
    """The states of the sequences that one instance has.

    Args:
        config: The model's configuration.
        folder: The model's folder, which holds ``initial_state/``.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        sequences = config.get("sequence_batching") or {}
        batched = config["max_batch_size"] > 0
        self._states = [
            State(item["input_name"], item["output_name"], _first(item, folder, batched=batched))
            for item in sequences.get("state") or ()
        ]
        idle = int(sequences.get("max_sequence_idle_microseconds") or 0) or _IDLE_US
        self._idle_s = 2 * idle / 1e6  # Triton ends them after half of this
        self._kept: dict[Any, tuple[float, Feed]] = {}
        self.outputs = [item.given for item in self._states]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._states)

    def before(self, request: Any) -> Feed:  # noqa: ANN401 - pb_utils.InferenceRequest
        """Return what the model takes as states for a request."""
        kept = self._kept.get(request.correlation_id())
        if kept is None or request.flags() & _START:
            return {item.taken: item.first for item in self._states}
        return kept[1]

    def after(self, request: Any, results: Mapping[str, Array]) -> None:  # noqa: ANN401 - as above
        """Keep what the model gave as states with a request, until its sequence ends."""
        now = time.monotonic()
        for name in [name for name, (used, _) in self._kept.items() if now - used > self._idle_s]:
            del self._kept[name]
        if request.flags() & _END:
            self._kept.pop(request.correlation_id(), None)
        else:
            kept = {item.taken: np.array(results[item.given]) for item in self._states}
            self._kept[request.correlation_id()] = (now, kept)


def _first(item: Config, folder: Path, *, batched: bool) -> Array:
    """Return what a sequence begins with.

    Raises:
        ServeError: Its size is not known, or its file is not there or of another size.
    """
    where = f"state '{item['input_name']}'"
    initial: Sequence[Config] = item.get("initial_state") or ()
    dims = [int(size) for size in (initial[0] if initial else item)["dims"]]
    shape = [1, *dims] if batched else dims
    if min(dims, default=0) < 0:
        raise ServeError(f"the {where} has the dims {dims}", hint="give it an initial_state with its size")
    dtype = np.dtype(DTYPES[item["data_type"]])
    name = initial[0].get("data_file") if initial else None
    if not name:
        return np.full(shape, "", dtype=object) if dtype.hasobject else np.zeros(shape, dtype)
    path = folder / "initial_state" / name
    try:
        return np.frombuffer(path.read_bytes(), dtype).reshape(shape)
    except (OSError, ValueError, TypeError) as error:
        raise ServeError(f"holds no {item['data_type']} {dims} for the {where}: {error}", where=str(path)) from None
