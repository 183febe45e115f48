"""Which int8 layers stay so in a TensorRT plan: those with which it is no slower than the network in fp16.

The int8 plan is there already. The same network with these layers in fp16 is built beside it (tactics that both need
come from the timing cache, a plan that was built before from the folder of plans), and both are timed in turns on the
GPU's own clock, as they are served, at the batch that each profile is tuned for. Where the engines' own layer times
promise that a mixture is faster than the better of both by more than chance, one more plan is built with the layers of
the regions that lose in fp16. Taken is the fastest that is slower than fp16 at no batch; fp16 itself where there is
none. So at most two plans are built beside the one that was asked for; ``quantize.keep = "all"`` builds none, and
``compile.tensorrt.weigh_seconds`` bounds the time: a plan that is not expected to be there by then is not begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, cast

import onnx

from repo_builder.compile import CompileTarget, timed
from repo_builder.compile.tensorrt import regions
from repo_builder.compile.tensorrt.regions import Piece
from repo_builder.core import onnx_files, progress
from repo_builder.core.details import EngineDetails, SpeedRecord, TensorRTDetails, TriedRecord
from repo_builder.core.errors import CompileError, ExportError, MeasureError, MissingDependency
from repo_builder.core.graphs import layer_of
from repo_builder.core.pairs import gain
from repo_builder.core.tensors import Array
from repo_builder.flows.build import running
from repo_builder.flows.build.making import Form, Making
from repo_builder.measure.judge import agreement
from repo_builder.measure.judge.limits import Limits

FP16: Final = "fp16"
FOLDERS = ("in-fp16", "partly-fp16")  # beside the plan that was asked for, while they are weighed
_ALL, _SOME, _NONE = "all of them", "without the regions that are slower", "none of them"
_WORTH = 1.02  # a mixture of which the layers' times promise less than this is not worth a build
_SECONDS = 0.15  # on the GPU, a batch size and plan
_SAMPLES = 8


class PlanTarget(CompileTarget, Protocol):
    """A target that tells how long what it fuses takes."""

    def pieces(self, plan_file: Path, nodes: Sequence[str], feeds: Mapping[int, dict[str, Array]]) -> tuple[Piece, ...]:
        """Return what a plan runs one after the other, with the time of each at each batch size."""
        ...


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What came of weighing.

    Attributes:
        form: The plan to serve.
        tried: What was weighed, in turn.
        notes: Sentences for the user.
    """

    form: Form
    tried: tuple[TriedRecord, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """What the plans of one network are weighed with.

    Attributes:
        making: What they are made with; its target builds, times and runs them.
        free: int8 layers that no rule calls by their full name.
        samples: Samples by input name, ``(n, *shape)``.
        fp32: Runs the fp32 graph on samples; raises MissingDependency where nothing here can.
        limits: What its outputs have to keep.
    """

    making: Making
    free: tuple[str, ...]
    samples: Mapping[str, Array]
    fp32: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    limits: Limits

    @property
    def target(self) -> PlanTarget:
        """What builds, times and runs plans."""
        return cast("PlanTarget", self.making.target)

    def _make(self, name: str, left: Mapping[str, str], asked: Form) -> Form:
        folder = asked.folder / name
        folder.mkdir()
        return self.making.form(folder, left, FP16, like=asked)

    def _expected_s(self, form: Form) -> float:
        """Return how long one more plan takes at least: as long as one of a form that was built."""
        details = form.details
        if not isinstance(details, TensorRTDetails):
            return 0.0
        return (details.build_seconds or 0.0) / max(details.builds or 1, 1)

    def _no_time(self, spent_s: float, next_s: float) -> str:
        """Return why one more plan is not begun; empty where it may be."""
        most = self.making.recipe.compile.tensorrt.weigh_seconds
        if most is None or spent_s + next_s <= most:
            return ""
        return (
            f"a plan that takes {next_s:.0f} s or more, {spent_s:.0f} s into weighing, is not begun: "
            f"compile.tensorrt.weigh_seconds is {most}"
        )

    def choose(self, asked: Form) -> Chosen:
        """Weigh a plan with int8 layers against its forms in fp16.

        Args:
            asked: The plan as the rules ask for it.
        """
        with progress.step("weigh int8 against fp16") as step:
            try:
                chosen = self._weighed(asked)
            except (
                CompileError,
                ExportError,
            ) as error:  # fp16 cannot hold it or is refused, or no profile covers samples
                note = f"int8 was not weighed against fp16: {error.message}"
                chosen = Chosen(form=asked, notes=(note,))
            step.note(next((row.what for row in chosen.tried if row.chosen), "not weighed"))
        return chosen

    def _weighed(self, asked: Form) -> Chosen:
        started, least_s = time.monotonic(), self._expected_s(asked)
        too_long = self._no_time(0.0, least_s)
        if too_long:
            return Chosen(form=asked, notes=(f"int8 was not weighed against fp16: {too_long}",))
        progress.stderr_console().print(f"  {_cost(least_s)}", markup=False)
        half = self._make(FOLDERS[0], dict.fromkeys(self.free, "left in fp16"), asked)
        misses = self._misses(half)
        if misses:  # fp16 is no way out: its exponent is too small for this network
            note = f"int8 was not weighed against fp16, which does not compute this network: {misses}"
            return Chosen(form=asked, notes=(note,))
        feeds = timed.feeds_of(self.making.batches, self.samples, sizes=tuned(asked.details))
        rows = [self._row(_ALL, asked, half, feeds, ())]
        forms = [asked]
        losing, said = self._losing(asked, half, feeds, pays(rows[0].speed))
        notes: list[str] = list(said)
        mixed = 0 < len(losing) < len(self.free)
        too_long = self._no_time(time.monotonic() - started, least_s) if mixed else ""
        if too_long:
            notes.append(f"int8 {_SOME}: {too_long}")
        elif mixed:
            try:
                some = self._make(FOLDERS[1], dict.fromkeys(losing, "left in fp16: slower in int8 here"), asked)
            except (CompileError, ExportError) as error:
                notes.append(f"int8 {_SOME}: no plan ({error.message})")
            else:
                row = self._row(_SOME, some, half, feeds, losing)
                rows.append(replace(row, fits=not self._misses(some)))
                forms.append(some)
        paying = [place for place, row in enumerate(rows) if row.fits is not False and pays(row.speed)]
        best = max(paying, key=lambda place: gain(rows[place].speed), default=None)
        rows.append(TriedRecord(what=_NONE, left=self.free, fits=True, against=FP16))
        forms.append(half)
        taken = len(rows) - 1 if best is None else best
        tried = tuple(replace(row, chosen=place == taken) for place, row in enumerate(rows))
        return Chosen(form=_told(forms[taken], tried, asked), tried=tried, notes=(*map(sentence, tried), *notes))

    def _row(
        self, what: str, form: Form, half: Form, feeds: Mapping[int, dict[str, Array]], left: tuple[str, ...]
    ) -> TriedRecord:
        speed = self.target.in_turns(half.model, form.model, feeds, seconds=_SECONDS)
        size = form.model.stat().st_size
        return TriedRecord(what=what, left=left, speed=speed, against=FP16, size_bytes=size)

    def _losing(
        self, asked: Form, half: Form, feeds: Mapping[int, dict[str, Array]], paying: bool
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the layers of regions slower in int8, and those in words; none where little is promised."""
        graphs = [onnx_files.load(item.graph) for item in (asked, half)]
        names = [[node.name for node in graph.graph.node] for graph in graphs]
        common = frozenset(names[0]) & frozenset(names[1])
        owner = regions.owners(graphs[1], common) | regions.owners(graphs[0], common)
        told = [self.target.pieces(item.model, nodes, feeds) for item, nodes in zip((asked, half), names, strict=True)]
        wholes = [regions.totals(items) for items in told]
        layers = _layers_of(graphs[0], self.free)
        slower = [
            (loss, region)
            for region in regions.compare(told[0], told[1], owner)
            if (loss := region.loss(wholes[1])) > 0 and region.nodes & layers.keys()
        ]
        promised = regions.promise(wholes[0], [region for _, region in slower], wholes[0 if paying else 1])
        if promised < _WORTH:
            return (), ()
        slower.sort(key=lambda pair: -pair[0])
        lost = frozenset(layers[node] for _, region in slower for node in region.nodes & layers.keys())
        words = tuple(
            _words([name for name in self.free if name in {layers[node] for node in region.nodes & layers.keys()}],
                   region)
            for _, region in slower[:5]
        )  # fmt: skip
        return tuple(name for name in self.free if name in lost), words

    def _misses(self, form: Form) -> str:
        """Return how the outputs of a form with fp16 in it depart from fp32; empty where they keep enough."""
        few = {name: value[:_SAMPLES] for name, value in self.samples.items()}
        with self.target.runner(form.model, form.details) as model:
            found = running.run(model, self.making.batches, few)
        try:
            exact = self.fp32(few)
        except MissingDependency:
            exact = found  # then finite is all that can be asked
        for name, value in exact.items():
            try:
                row = agreement.compare(value, found[name], name=name)
            except MeasureError as error:
                return error.message
            why = self.limits.departure(row, self.limits.least_db("placed"), discrete=value.dtype.kind != "f")
            if why:
                return f"output '{name}': {why}"
        return ""


def _told(form: Form, tried: Sequence[TriedRecord], asked: Form) -> Form:
    """Return the form that is taken, its layers with why they are not int8, and their noise where it is the same."""
    taken = next(row for row in tried if row.chosen)
    if form is asked:
        return form
    figures = "; ".join(f"{row.what} in int8: {speeds(row.speed)}" for row in tried if row.speed)
    why = f"int8 does not pay here ({figures})"
    known = {row.name: row for row in asked.lowered.layers}
    layers = []
    for row in form.lowered.layers:
        before = known[row.name]
        same = before.sqnr_db if before.precision == row.precision else None
        layers.append(replace(row, reason=why if row.name in taken.left else row.reason, sqnr_db=same))
    return replace(form, lowered=replace(form.lowered, layers=tuple(layers)))


def tuned(details: EngineDetails) -> tuple[int, ...]:
    """Return the batch sizes that a plan's profiles are tuned for."""
    if not isinstance(details, TensorRTDetails):
        raise TypeError(f"{type(details).__name__} has no profiles")
    return tuple(sorted({next(iter(item.values())).opt[0] for item in details.profiles}))


def pays(rows: Sequence[SpeedRecord]) -> bool:
    """Whether a plan is faster at a batch size and slower at none; an interval that holds 1 says neither."""
    said = {row.verdict for row in rows}
    return "slower" not in said and "faster" in said


def speeds(rows: Sequence[SpeedRecord]) -> str:
    """Return a plan's times beside fp16's, in words."""
    return " and ".join(
        f"{row.candidate_us:.0f} us to {row.reference_us:.0f} in fp16 at batch {row.batch_size}{_started(row)}"
        for row in rows
    )


def _started(row: SpeedRecord) -> str:
    """Say which of two plans no CUDA graph could hold."""
    slow = [name for name, how in zip((FP16, "int8"), row.launched, strict=False) if how == "kernel by kernel"]
    return f" ({' and '.join(slow)} started kernel by kernel)" if slow else ""


def _cost(least_s: float) -> str:
    """Say what weighing takes, before it does."""
    one = f"about {least_s:.0f} s, more where its tactics were never measured," if least_s else "a while"
    return (
        f"one plan in fp16 is built beside int8, {one} and a mixed one where layer times promise that it pays "
        '(compile.tensorrt.weigh_seconds bounds it, quantize.keep = "all" leaves it out)'
    )


def sentence(row: TriedRecord) -> str:
    """Say in one sentence what a choice gives."""
    if not row.speed:
        return "int8, none of them: the network comes out in fp16" if row.chosen else "int8, none of them: fp16"
    end = " (taken)" if row.chosen else (" (the outputs keep too little)" if row.fits is False else "")
    return f"int8, {row.what}: {speeds(row.speed)}{end}"


def _layers_of(graph: onnx.ModelProto, free: Sequence[str]) -> dict[str, str]:
    """Return node → the layer that it computes, of those that may be left out of int8."""
    wanted = frozenset(free)
    found = {node.name: layer_of(node) for node in graph.graph.node}
    return {node: layer for node, layer in found.items() if layer in wanted and layer is not None}


def _words(layers: Sequence[str], region: regions.Region) -> str:
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    times = ", ".join(
        f"{region.first_us[size]:.0f} us in int8 and {region.second_us[size]:.0f} in fp16 at batch {size}"
        for size in region.first_us
    )
    return f"slower in int8: the region of {', '.join(layers[:3])}{more}, {times}"
