"""Worker processes that make the load, and the handle by which the measuring process drives them.

A worker runs ``main`` with a file descriptor as its argument; orders and records travel over that socket as pickles. It
ends when the socket closes, so that none outlives the measuring process.
"""

from __future__ import annotations

import dataclasses
import gc
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

from repo_builder.core.errors import MeasureError, RepoBuilderError
from repo_builder.core.tensors import Array
from repo_builder.measure.load.loop import Loop
from repo_builder.measure.load.records import Records
from repo_builder.measure.load.sequences import Plan, Sequences
from repo_builder.measure.wire.messages import codec
from repo_builder.measure.wire.transport import Endpoint, Transport, open_transport
from repo_builder.measure.wire.verify import Expected, verify


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know before it can send.

    Attributes:
        endpoint: Where to.
        model: The model's name.
        version: Its version, or empty.
        payloads: Prepared requests; none where ``plan`` has them.
        expected: What every response must look like.
        slots: Number of requests in flight at the most.
        timeout_s: Deadline for connections and for each response.
        plan: What sequences are made of; None where requests stand alone.
        decoupled: Whether a request has any number of responses.
    """

    endpoint: Endpoint
    model: str
    version: str
    payloads: tuple[bytes, ...]
    expected: Expected
    slots: int
    timeout_s: float
    plan: Plan | None = None
    decoupled: bool = False


class Fleet:
    """A few worker processes that load a server together."""

    def __init__(self, size: int) -> None:
        self._workers = [_Worker() for _ in range(size)]
        self._active: list[_Worker] = []
        self._timeout_s = 60.0

    def __len__(self) -> int:
        """Return the number of workers that the present job uses."""
        return len(self._active)

    def prepare(self, job: Job) -> None:
        """Hand a job to as many workers as it has slots for, and wait until they are connected.

        Raises:
            ConnectionLost: One of them could not connect.
        """
        count = min(len(self._workers), job.slots)
        self._active = self._workers[:count]
        self._timeout_s = job.timeout_s + 20
        for place, worker in enumerate(self._active):
            slots = job.slots // count + (place < job.slots % count)
            worker.send(("prepare", dataclasses.replace(job, slots=slots)))
        try:
            self._answers()
        except LoadFailed as failed:
            raise failed.cause from None

    def start(self, arrivals_ns: Array | None) -> None:
        """Start the load; arrivals of an open loop are dealt out to the workers in turn."""
        for place, worker in enumerate(self._active):
            worker.send(("start", None if arrivals_ns is None else arrivals_ns[place :: len(self._active)]))

    def take(self) -> Records:
        """Return what was recorded since the last time.

        Raises:
            MeasureError: The load has ended because of the server; the error's ``records`` hold what there was.
        """
        for worker in self._active:
            worker.send(("take", None))
        return Records.join(self._answers())

    def stop(self) -> Records:
        """Stop the load, wait for what is in flight and return what was recorded since the last time."""
        for worker in self._active:
            worker.send(("stop", None))
        return Records.join(self._answers())

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def _answers(self) -> list[Records]:
        """Collect one answer a worker; the first that failed speaks for all."""
        records: list[Records] = []
        failed: RepoBuilderError | None = None
        for worker in self._active:
            error, part = worker.receive(self._timeout_s)
            records.append(part)
            failed = failed or error
        if failed is not None:
            raise LoadFailed(failed, Records.join(records))
        return records


class LoadFailed(MeasureError):  # noqa: N818 - reads as what it is
    """The load has ended because of the server.

    Attributes:
        cause: Why.
        records: What was recorded since the last time.
    """

    def __init__(self, cause: RepoBuilderError, records: Records) -> None:
        super().__init__(cause.message, where=cause.where, hint=cause.hint)
        self.cause = cause
        self.records = records


class _Worker:
    """One process and the connection to it."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        # The same places as here, and not the current folder first, where a file may be named like a library.
        places = [str(place) for place in sys.path]
        code = f"import sys; sys.path[:] = {places!r}; from repo_builder.measure.load.worker import main; main()"
        command = [sys.executable, "-c", code, str(theirs.fileno())]
        # Its own session: Ctrl-C reaches the measuring process, which then asks for what there is.
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()

    def send(self, order: tuple[str, Any]) -> None:
        try:
            self._pipe.send(order)
        except OSError:
            raise self._died() from None

    def receive(self, timeout_s: float) -> tuple[RepoBuilderError | None, Records]:
        try:
            if self._pipe.poll(timeout_s):
                answer: tuple[RepoBuilderError | None, Records] = self._pipe.recv()
                return answer
        except (OSError, EOFError):
            raise self._died() from None
        raise MeasureError(f"the load generator has not answered for {timeout_s:g} s", hint="the machine is overloaded")

    def close(self) -> None:
        self._pipe.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _died(self) -> MeasureError:
        code = self._process.poll()
        return MeasureError(f"the load generator's process has ended (code {code})", hint="was it killed? run again")


class _Servant:
    """The worker's side: obeys orders, between and during loads."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._orders = select.poll()  # the pipe's own poll makes a selector each time
        self._orders.register(pipe.fileno(), select.POLLIN)
        self._loop: Loop | None = None
        self._transport: Transport | None = None
        self._failed: RepoBuilderError | None = None
        self._stopping = False

    def serve(self) -> None:
        while True:
            kind, value = self._pipe.recv()
            if kind == "start":
                self._load(value)
            elif kind == "prepare":
                self._answer(self._prepare(value))
            else:
                self._answer(self._taken())

    def _prepare(self, job: Job) -> Records:
        self._failed = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        wire = codec(job.endpoint, job.model, job.version)
        try:
            self._transport = open_transport(job.endpoint, wire.path, slots=job.slots, timeout_s=job.timeout_s)
            sequences = Sequences(job.plan, job.slots) if job.plan else None
        except RepoBuilderError as error:
            self._failed = error
            return Records()

        def check(raw: bytes, turn: int) -> None:
            verify(wire.decode(raw), job.expected, turn)

        steps = job.payloads or (b"",) * len(job.plan.steps if job.plan else ())
        self._loop = Loop(self._transport, steps, check, job.timeout_s, sequences, decoupled=job.decoupled)
        return Records()

    def _load(self, arrivals_ns: Array | None) -> None:
        """Run the load until told to stop; the answer to that comes when what was in flight is back."""
        if self._loop is None:
            return
        self._stopping = False
        try:
            self._loop.run(arrivals_ns, self._tick)
        except RepoBuilderError as error:
            self._failed = error
        if self._stopping:
            self._answer(self._taken())

    def _tick(self) -> bool:
        """Obey an order in the midst of a load; return whether to go on."""
        if not self._orders.poll(0):
            return True
        kind, _ = self._pipe.recv()
        self._stopping = kind == "stop"
        if not self._stopping:
            self._answer(self._taken())
        return not self._stopping

    def _taken(self) -> Records:
        return self._loop.take() if self._loop is not None else Records()

    def _answer(self, records: Records) -> None:
        self._pipe.send((self._failed, records))


def main() -> None:
    """Serve the orders that come over the file descriptor named on the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # a collection would stand in somebody's latency, and nothing here makes cycles
    try:
        _Servant(Connection(int(sys.argv[1]))).serve()
    except (EOFError, OSError):
        return
