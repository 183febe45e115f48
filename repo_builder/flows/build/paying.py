"""Which int8 and int4 layers stay so on ONNX Runtime: those that the outputs bear, and of them those that pay.

Accuracy comes first. Where the outputs keep too little on calibration samples, the network is cut into pieces of
neighbouring layers; each piece is made int8 alone, and pieces are left in fp32 from the one that does most damage on,
those first that help, until the outputs keep enough. A layer's own noise is no guide here: it does not tell what the
layers behind it make of it (PP-OCR's recogniser: the five noisiest layers cost the outputs nothing, three of average
noise cost the most). Codes and shifts of repairs were found with every layer in int8; with some left out, those behind
them have other errors, so a choice is looked at with them and without.

Speed comes second. A few choices are timed against fp32, in turns, by CPU time: all that is left, the first
convolution in fp32, the runs of layers in fp32 that ONNX Runtime's profile finds no faster, the single layers
likewise. One that leaves more in fp32 has to be ``_WORTH`` times as fast as one that leaves less; what is not
``_WORTH`` times as fast as fp32, or slower at a batch size, is none. int4 weights, which are as much for size as for
speed, are judged by speed here as int8 is: ``keep = "all"`` keeps them for their size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from repo_builder.compile import timed
from repo_builder.core import loading, progress
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.details import TriedRecord
from repo_builder.core.environment import Saturation
from repo_builder.core.errors import MeasureError
from repo_builder.core.pairs import gain
from repo_builder.core.precisions import lowered
from repo_builder.core.samples import Batches
from repo_builder.core.tensors import Array
from repo_builder.flows.build import running
from repo_builder.flows.build.lowering import Ready
from repo_builder.flows.build.weighed import Kept, hardest, sentence, some, told
from repo_builder.measure.judge import agreement
from repo_builder.measure.judge.limits import Limits
from repo_builder.quantize import leaving
from repo_builder.quantize.placement import Placed
from repo_builder.quantize.placement.groups import groups

if TYPE_CHECKING:
    import onnx

    from repo_builder.compile.onnxruntime.speed import Timer

_SAMPLES = 8  # of calibration, for each look at the outputs
_JUDGES = 64  # of calibration, for what is good enough on the few: rare samples that are hard are seldom among them
_PIECES = 8
_MARGIN_DB = 3.0  # calibration samples are those that ranges fit best; others must keep the limit, too
_WORTH = 1.03  # below is the noise of timing
_SLOWEST = 0.98
_BATCH_US = 150_000.0  # a batch that takes longer is timed in a smaller one
_WHAT = "weighing what lower precisions pay"  # needs ONNX Runtime
_SECONDS = 0.15  # CPU time a choice, batch size and form


def choose(
    exported: OnnxArtifact, target: tuple[str, Saturation], batches: Batches, samples: Mapping[str, Array] | None
) -> Kept:
    """Weigh the int8 and int4 layers of an artifact.

    Args:
        exported: The artifact, calibrated.
        target: What the target says of its profile (``CompileTarget.placement``).
        batches: How the model takes samples.
        samples: Calibration samples, ``(n, *shape)`` by input name; None where they are not on this machine.
    """
    ready = Ready.of(exported, target)
    with tempfile.TemporaryDirectory(prefix="repo-builder-") as folder:
        weighing = _Weighing(exported, ready, batches, samples, Path(folder))
        if not weighing.free:
            return Kept()
        if weighing.samples is None:
            return Kept(notes=("what lower precisions pay was not weighed: the samples are not on this machine",))
        accurate = weighing.accurate()
        return weighing.with_repairs(weighing.fast(accurate))


class _Weighing:
    """One artifact's choices; each is placed, written and looked at once."""

    def __init__(
        self,
        exported: OnnxArtifact,
        ready: Ready,
        batches: Batches,
        samples: Mapping[str, Array] | None,
        folder: Path,
    ) -> None:
        self.exported, self.ready, self.batches, self.folder = exported, ready, batches, folder
        self.samples = samples
        self.few = {name: value[:_SAMPLES] for name, value in (samples or {}).items()}
        asked = [row.asked for row in exported.layers if row.asked in leaving.MAY_NOT_PAY]
        self.asked, self.what = frozenset(asked), lowered(asked)
        self.limits = Limits.of(exported.recipe.measure, asked)
        self.tried: list[TriedRecord] = []
        self._files: dict[tuple[frozenset[str], bool], Path] = {}
        self._lowered, self._placed, _ = self._write(frozenset(), plain=False)
        self.free = leaving.free(ready.plans, self._placed)
        self.groups, self.first = groups(ready.model, ready.plans, ready.ranges, ready.profile)
        self.most = {name: value[:_JUDGES] for name, value in (samples or {}).items()}
        self._exact: dict[int, Mapping[str, Array]] = {}

    def accurate(self) -> frozenset[str]:
        """Return the layers that have to be left in fp32 for the outputs."""
        left: frozenset[str] = frozenset()
        with progress.step("weigh accuracy") as step:
            if self._look("all of them", left):
                step.note(self._kept())
                return left
            pieces = self._pieces()
            order = sorted(range(len(pieces)), key=lambda place: self._alone(pieces[place]))
            left = self._fewest([pieces[place] for place in order])
            step.note(f"{len(left)} of {len(self.free)} layers left in fp32; {self._kept()}")
        return left

    def _fewest(self, pieces: Sequence[frozenset[str]]) -> frozenset[str]:
        """Leave pieces in fp32 until the outputs keep enough: those that help, then the others (errors may cancel)."""
        left, most, others = frozenset[str](), self.tried[-1].sqnr_db or 0.0, []
        for piece in pieces:
            if self._look(f"without {some(self._ordered(left | piece))}", left | piece):
                return left | piece
            found = self.tried[-1].sqnr_db or 0.0
            if found > most:
                left, most = left | piece, found
            else:
                others.append(piece)
        for piece in others:
            left |= piece
            if self._look(f"without {some(self._ordered(left))}", left):
                break
        return left

    def fast(self, accurate: frozenset[str]) -> Kept:
        """Choose what is fastest, more exact than the outputs need included, and say why."""
        most = min(32, self.exported.recipe.repository.max_batch_size)
        with progress.step("weigh speed") as step:
            choices = [self.tried[-1]]
            if len(accurate) < len(self.free):
                timer = self._timer(most)
                choices = [self._timed(timer, self.tried[-1], accurate)]
                for what, left in self._candidates(accurate):
                    # with nothing left in int8 it is the reference itself, whatever timing makes of it
                    if left not in [*(frozenset(item.left) for item in choices), frozenset(self.free)]:
                        choices.append(self._timed(timer, TriedRecord(what=what), left))
            best = choices[0]
            for item in choices[1:]:
                if gain(item.speed) > gain(best.speed) * _WORTH:
                    best = item
            everything = TriedRecord(what="none of them", left=self.free, fits=True)  # fp32 itself
            pays = (
                bool(best.speed) and gain(best.speed) >= _WORTH and min(row.speedup for row in best.speed) >= _SLOWEST
            )
            chosen = best if pays else everything
            step.note(told(self.what, chosen))
        weighed = [*self.tried[:-1], *choices, *([] if pays else [everything])]
        tried = tuple(replace(row, chosen=row is chosen) for row in weighed)
        return Kept(
            left=self._reasons(chosen, accurate, best),
            tried=tried,
            notes=(*self._destroyed(), *(sentence(self.what, row) for row in tried)),
        )

    def _destroyed(self) -> tuple[str, ...]:
        """Where all of them leave the outputs too little, name the layers that are beyond use on their own."""
        if self.tried[0].fits or not self.asked & {"int8"}:
            return ()
        with loading.needs("onnxruntime", what=_WHAT):
            from repo_builder.quantize import noise
        coded = [item.name for item in self._placed.layers if item.placed == "int8"]
        samples = running.whole(self.batches, self.samples or {})
        return hardest(noise.signal_to_noise(self.ready.model, self._lowered, coded, samples))

    def with_repairs(self, kept: Kept) -> Kept:
        """Leave out what repairs found where the outputs keep more of a choice without it, and say so."""
        left = frozenset(kept.left)
        if not left or left == frozenset(self.free) or not self.ready.ranges.repaired:
            return kept
        repaired, plain = (self._compared(left, self.most, plain=plain)[0] for plain in (False, True))
        if plain <= repaired:
            return kept
        note = (
            f"repairs of codes and biases were made for all layers in {self.what} and are undone: with these left in "
            f"fp32 the outputs keep {plain:.1f} dB without them, {repaired:.1f} with them"
        )
        return replace(kept, notes=(*kept.notes, note), unrepaired=True)

    def _candidates(self, accurate: frozenset[str]) -> Iterable[tuple[str, frozenset[str]]]:
        free = frozenset(self.free)
        first = frozenset(self.first) & free
        if first:
            yield "without the first convolution", accurate | first
        with loading.needs("onnxruntime", what=_WHAT):
            from repo_builder.compile.onnxruntime.node_times import measure
        feed = next(iter(self._feeds(1).values()))
        before = measure(self._file(free), self.free, feed)
        after = measure(self._file(accurate), self.free, feed)
        slow = {name for name in free - accurate if after.layers.get(name, 0) > before.layers.get(name, 0)}
        losing: set[str] = set()
        for group in self.groups:
            gain = sum(before.layers.get(name, 0) - after.layers.get(name, 0) for name in group.layers)
            if gain < sum(after.quantizing.get(tensor, 0) for tensor in group.tensors):
                losing.update(free.intersection(group.layers))
        if losing:
            yield "without the runs that are no faster", accurate | losing
            yield "without the first convolution and the runs that are no faster", accurate | losing | first
        if slow:
            yield "without the layers that are slower alone", accurate | slow

    def _pieces(self) -> list[frozenset[str]]:
        size = -(-len(self.free) // _PIECES)
        return [frozenset(self.free[start : start + size]) for start in range(0, len(self.free), size)]

    def _alone(self, piece: frozenset[str]) -> float:
        """Return what the outputs keep where a piece alone is int8, dB."""
        return self._ratio(frozenset(self.free) - piece, self.few)[0]

    def _look(self, what: str, left: frozenset[str]) -> bool:
        """Whether the outputs keep enough; what was seen is written down."""
        ratio, why = self._ratio(left, self.few)
        if not why and len(next(iter(self.most.values()))) > _SAMPLES:
            ratio, why = self._ratio(left, self.most)
        row = TriedRecord(what=what, left=self._ordered(left), sqnr_db=round(ratio, 2), fits=not why)
        self.tried.append(row)
        return not why

    def _ratio(self, left: frozenset[str], samples: Mapping[str, Array]) -> tuple[float, str]:
        """Return the least signal to noise of an output, dB, and how an output departs, in the form that keeps more."""
        ways = (False, True) if left and self.ready.ranges.repaired else (False,)
        return max((self._compared(left, samples, plain=plain) for plain in ways), key=lambda found: found[0])

    def _compared(self, left: frozenset[str], samples: Mapping[str, Array], *, plain: bool) -> tuple[float, str]:
        count = len(next(iter(samples.values())))
        if count not in self._exact:
            self._exact[count] = self._run(self.exported.model, samples)
        found, why, least = self._run(self._file(left, plain=plain), samples), "", []
        bound = self.limits.least_db("placed") + _MARGIN_DB
        for name, exact in self._exact[count].items():
            try:
                row = agreement.compare(exact, found[name], name=name)
            except MeasureError:  # not finite
                return -200.0, "an output is not finite"
            least.append(200.0 if row.sqnr_db is None else row.sqnr_db)
            why = why or self.limits.departure(row, bound, discrete=exact.dtype.kind != "f")
        return min(least), why

    def _run(self, path: Path, samples: Mapping[str, Array]) -> Mapping[str, Array]:
        with loading.needs("onnxruntime", what=_WHAT):
            from repo_builder.compile.onnxruntime.target import OnnxRuntimeRunner
        with OnnxRuntimeRunner(path) as model:
            return running.run(model, self.batches, samples)

    def _write(self, left: frozenset[str], *, plain: bool) -> tuple[onnx.ModelProto, Placed, tuple[str, ...]]:
        path = self.folder / f"{len(self._files)}" / "model.onnx"
        path.parent.mkdir()
        ready = self.ready.unrepaired() if plain else self.ready
        made = ready.write(self.exported, path, dict.fromkeys(left, "left"))
        if "int4" in self.asked:
            with loading.needs("onnxruntime", what=_WHAT):
                from repo_builder.compile.onnxruntime import nbits
            nbits.finish(path, path, self.exported.recipe.compile.onnxruntime.int4_compute)
        self._files[left, plain] = path
        return made

    def _file(self, left: frozenset[str], *, plain: bool = False) -> Path:
        if (left, plain) not in self._files:
            self._write(left, plain=plain)
        return self._files[left, plain]

    def _feeds(self, most: int) -> dict[int, dict[str, Array]]:
        return timed.feeds(self.batches, self.samples or {}, most=most)

    def _timer(self, most: int) -> Timer:
        """Return a timer for batches of 1 and of as many samples as take a bounded time."""
        with loading.needs("onnxruntime", what=_WHAT):
            from repo_builder.compile.onnxruntime.speed import Timer
        reference = self._file(frozenset(self.free))
        alone = Timer(reference, self._feeds(1), seconds=0.0).against(reference)[0].reference_us
        fitting = max(1, min(most, int(_BATCH_US / max(alone, 1.0))))
        return Timer(reference, self._feeds(fitting), seconds=_SECONDS)

    def _timed(self, timer: Timer, row: TriedRecord, left: frozenset[str]) -> TriedRecord:
        return replace(row, left=self._ordered(left), speed=timer.against(self._file(left)))

    def _ordered(self, left: Iterable[str]) -> tuple[str, ...]:
        chosen = frozenset(left)
        return tuple(name for name in self.free if name in chosen)

    def _reasons(self, chosen: TriedRecord, accurate: frozenset[str], best: TriedRecord) -> dict[str, str]:
        """Return why each layer that is left in fp32 is."""
        slow = ""
        if chosen is not best and best.speed:
            slow = f"left in fp32: {self.what} is {gain(best.speed):.2f} times as fast here"
        elif best.speed:
            slow = (
                f"left in fp32: it does not pay here ({best.what}, the network is {gain(best.speed):.2f} times as fast)"
            )
        noisy = f"left in fp32: {self.tried[0].sqnr_db:.1f} dB of the outputs is left with all in {self.what}"
        return {name: noisy if name in accurate else slow for name in chosen.left}

    def _kept(self) -> str:
        return f"the outputs keep {self.tried[-1].sqnr_db:.1f} dB"
