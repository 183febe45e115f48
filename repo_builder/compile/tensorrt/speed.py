"""Two plans timed in turns by events on the GPU: the engines' own time, without copies and without the host.

They run as CUDA graphs, as the backend serves them: at small batches a plan whose kernels are started one by one waits
for the host, and then two plans look alike of which one is faster (MobileNetV2 at batch 1 on an H200: 320 and 318 us
where graphs take 183 and 191). A plan that cannot be captured is started kernel by kernel, as it then is when it is
served, and its row says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from repo_builder.compile.tensorrt.plan import Plan, Session
from repo_builder.compile.tensorrt.profiles import choose
from repo_builder.core import device
from repo_builder.core.details import Launch, SpeedRecord
from repo_builder.core.errors import CompileError
from repo_builder.core.pairs import paired
from repo_builder.core.tensors import Array

_MIN_TURNS = 15
_TURN_S = 2e-3  # the GPU is kept busy between two marks, so that what the host takes to start a run does not show
_WARM = 5


class _Ready:
    """One plan with inputs of one batch size on the GPU."""

    def __init__(self, plan: Plan, feed: Mapping[str, Array]) -> None:
        shapes = {item.name: tuple(feed[item.name].shape) for item in plan.inputs}
        chosen = choose(plan.profiles, shapes)
        if chosen is None:
            raise CompileError(f"no optimization profile of the plan covers {shapes}")
        self.session = Session(plan, chosen)
        self.session(feed)  # which leaves the inputs in its buffers, and the shapes set
        self._marks = device.Event(timed=True), device.Event(timed=True)
        self._graph = _captured(self.session)

    @property
    def launched(self) -> Launch:
        """How its runs are started."""
        return "CUDA graph" if self._graph else "kernel by kernel"

    def _start(self) -> None:
        if self._graph:
            self._graph.launch(self.session.stream)
        else:
            self.session.enqueue()

    def seconds(self, repeat: int) -> float:
        """Return the time of one run on the GPU, as the mean of so many in a row."""
        first, last = self._marks
        first.record(self.session.stream)
        for _ in range(repeat):
            self._start()
        last.record(self.session.stream)
        last.synchronize()
        return last.since(first) / 1e3 / repeat

    def close(self) -> None:
        """Give everything back."""
        self.session.stream.synchronize()
        for item in (*self._marks, *([self._graph] if self._graph else [])):
            item.free()
        self.session.close()


def _captured(session: Session) -> device.Graph | None:
    """Return a run as a CUDA graph; None where the engine cannot be captured."""
    try:
        return device.captured(session.stream, session.enqueue)
    except (CompileError, device.CudaError):
        device.cudart.cudaGetLastError()  # what failed is behind us, and no later call shall be told of it
        return None


def in_turns(
    reference: Path, candidate: Path, inputs: Mapping[int, dict[str, Array]], *, seconds: float
) -> tuple[SpeedRecord, ...]:
    """Time two plans; one row a batch size.

    Args:
        reference: What the other is compared with.
        candidate: The other.
        inputs: Batch size → inputs of both.
        seconds: Time on the GPU a batch size and plan, about.

    Raises:
        CompileError: A plan does not load, or takes no such batch.
    """
    plans = [Plan.load(reference), Plan.load(candidate)]
    rows = []
    for size, feed in inputs.items():
        ready = [_Ready(plan, feed) for plan in plans]
        try:
            rows.append(_timed(size, ready, seconds))
        finally:
            for item in ready:
                item.close()
    return tuple(rows)


def _timed(size: int, ready: list[_Ready], seconds: float) -> SpeedRecord:
    repeat = max(1, int(_TURN_S / max(*(item.seconds(_WARM) for item in ready), 1e-7)))
    times: list[list[float]] = [[], []]
    spent, turn = 0.0, 0
    while spent < 2 * seconds or turn < _MIN_TURNS:
        for place in (0, 1) if turn % 2 else (1, 0):
            times[place].append(ready[place].seconds(repeat))
            spent += times[place][-1] * repeat
        turn += 1
    return replace(paired(size, *times), launched=(ready[0].launched, ready[1].launched))
