"""One network on the bench: a choice of precisions is placed, compiled, timed and looked at, each once."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.compile import CompileOptions, CompileTarget, timed
from repo_builder.compile.timed import LayerTimes
from repo_builder.core import codec, environment, files
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.details import DropRecord, EngineDetails, SpeedRecord
from repo_builder.core.errors import CompileError, MeasureError, QuantizeError, RecipeError
from repo_builder.core.samples import Batches
from repo_builder.core.tensors import Array
from repo_builder.datasets import Dataset
from repo_builder.export import qdq
from repo_builder.flows.build import keys, lowering, running
from repo_builder.flows.build.options import BuildOptions
from repo_builder.flows.search.choices import REPAIRS, Choice, Space, called
from repo_builder.flows.search.ledger import Ledger
from repo_builder.flows.search.looks import Look, Looker
from repo_builder.flows.search.seen import Seen
from repo_builder.quantize import leaving
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement.groups import Group, groups, unweighted
from repo_builder.quantize.rules import LayerPlan

_HELD = 4  # times the samples of a look are held back, at most half of all there are
_FILES = 6  # trials whose files are kept; others are made again
_BATCH_US = 150_000.0  # a batch that takes longer is timed in a smaller one
SECONDS = 0.15  # a choice, batch size and form
_CODE = ("compile", "quantize", "export", "flows/search", "flows/build/lowering.py")


@dataclass(frozen=True, kw_only=True)
class Made:
    """A choice's model.

    Attributes:
        path: What is timed and run.
        details: What the target's runner needs.
        size_bytes: Its size.
    """

    path: Path
    details: EngineDetails
    size_bytes: int


class Bench:
    """What a search measures with.

    Args:
        exported: The artifact of the widest recipe.
        target: The compile target.
        options: The build that asks.
        dataset: Its calibration samples find ranges, its validation samples judge, a part of them only what was chosen
            by the others; test samples are never seen.
        folder: Where what lasts is kept.
        scratch: Where trials are made.
        cache: Where the target keeps what makes its builds shorter: the folder of the build itself.
        samples: Validation samples of a look, where they decide.
        seed: Which of them.
        ledger: Where measurements are kept.
    """

    def __init__(
        self,
        exported: OnnxArtifact,
        target: CompileTarget,
        options: BuildOptions,
        dataset: Dataset,
        *,
        folder: Path,
        scratch: Path,
        cache: Path,
        samples: int,
        seed: int,
        ledger: Ledger,
    ) -> None:
        self.exported, self.target, self.options, self.ledger = exported, target, options, ledger
        self.ready = lowering.Ready.of(exported, target.placement(options.recipe))
        self.batches = _batches(exported)
        self._scratch, self._cache, self._made = scratch, cache, OrderedDict[str, Made]()
        self._refused: dict[str, str] = {}
        self.seen = Seen(exported, self.ready, dataset, self.batches, folder / "seen.npz")
        self.space = self._space()
        validation = dataset.split("validation")
        order = random.Random(seed).sample(range(len(validation)), len(validation))  # noqa: S311 - a draw of samples
        self.held = min(len(order) // 2, _HELD * samples)
        kept = len(order) - self.held
        self.looker = Looker(exported, self.batches, validation, order=order[:kept], samples=samples)
        self._holder = Looker(exported, self.batches, validation, order=order[kept:], samples=self.held)
        recipe = exported.recipe.to_dict()
        self._base = files.sha256_of_json({
            "ranges": self.seen.key,
            "compile": recipe["compile"],
            "measure": recipe["measure"],
            "max_batch_size": recipe["repository"]["max_batch_size"],
            "placement": target.placement(options.recipe),
            "samples": [len(order), self.held, seed],
            "code": keys.code_version(*_CODE),
            "mismatch": options.allow_precision_mismatch,
        })  # fmt: skip
        self._looks: dict[tuple[Choice, int], Look] = {}
        self._speeds: dict[tuple[Choice, Choice, float], tuple[SpeedRecord, ...]] = {}

    @property
    def rest(self) -> Choice:
        """All free layers in fp32."""
        return Choice().but(self.space.free, "fp32")

    def look(self, choice: Choice, *, few: bool = False, count: int | None = None) -> Look:
        """Return what a choice leaves of the outputs.

        Args:
            choice: The choice.
            few: Whether a quick look is enough.
            count: On how many validation samples, at most all; left out, as many as were asked for.

        Raises:
            MeasureError: The ledger that is replayed holds no such thing.
        """
        count = min(count or (self.looker.few if few else self.looker.samples), self.looker.available)
        if (choice, count) not in self._looks:
            found = self.ledger.get(f"look {self.key(choice)} {count}", lambda: self._look(choice, count, self.looker))
            self._looks[choice, count] = _read(Look, found)
        return self._looks[choice, count]

    def hold(self, choice: Choice) -> Look:
        """Return what a choice leaves of the outputs on the validation samples that choose nothing, all of them."""
        name = f"hold {self.key(choice)} {self.held}"
        return _read(Look, self.ledger.get(name, lambda: self._look(choice, self.held, self._holder)))  # type: ignore[no-any-return]

    def exact(self, choice: Choice) -> bool:
        """Whether every layer of a choice is fp32."""
        return all(item.precision == "fp32" for item in self.space.planned(choice))

    def int8(self, choice: Choice) -> bool:
        """Whether a layer of a choice is int8."""
        return any(item.precision == "int8" for item in self.space.planned(choice))

    def speed(self, choice: Choice, against: Choice, *, seconds: float = SECONDS) -> tuple[SpeedRecord, ...]:
        """Return how many times as fast a choice is as another, one row a batch size; nothing where it does not build.

        Raises:
            MeasureError: The ledger that is replayed holds no such thing.
        """
        key = choice, against, seconds
        if key not in self._speeds:
            sizes = self._sizes()
            name = f"time {self.key(choice)} {self.key(against)} {sizes} {seconds}"
            found = self.ledger.get(name, lambda: self._time(choice, against, sizes, seconds))
            self._speeds[key] = tuple(_read(SpeedRecord, row) for row in found.get("speed", ()))
        return self._speeds[key]

    def layer_times(self, choice: Choice) -> LayerTimes | None:
        """Return how long each layer takes, where the target tells."""

        def measure() -> dict[str, Any]:
            made = self.make(choice)
            feed = next(iter(self._feeds(1).values()))
            found = None if made is None else self.target.layer_times(made.path, self.space.free, feed)
            return {} if found is None else {"times": dataclasses.asdict(found)}

        found = self.ledger.get(f"profile {self.key(choice)}", measure).get("times")
        return None if found is None else _read(LayerTimes, found)

    def groups(self, choice: Choice) -> tuple[tuple[Group, ...], tuple[str, ...]]:
        """Return the runs of int8 layers that a choice makes, and the layers that read images."""
        plans = self.space.planned(choice)
        return groups(self.ready.model, plans, self.seen.ranges(plans), self.ready.profile)

    def make(self, choice: Choice) -> Made | None:
        """Return a choice's model; None where the target refuses it, and ``why_refused`` says why."""
        key = self.key(choice)
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        if key in self._refused:
            return None
        folder = self._scratch / key
        folder.mkdir(exist_ok=True)
        try:
            self._made[key] = self._make(choice, folder)
        except (CompileError, QuantizeError) as error:
            self._refused[key] = error.message
            return None
        while len(self._made) > _FILES:
            old, _ = self._made.popitem(last=False)
            shutil.rmtree(self._scratch / old)
        return self._made[key]

    def why_refused(self, choice: Choice) -> str:
        """Return why a choice does not build; empty where it does."""
        return self._refused.get(self.key(choice), "")

    def _make(self, choice: Choice, folder: Path) -> Made:
        plans = self.space.planned(choice)
        graph = folder / "graph.onnx"
        if choice.repaired:
            ready = self.seen.repaired(plans, folder)
        else:
            ready = dataclasses.replace(self.ready, plans=plans, ranges=self.seen.ranges(plans))
        lowered, _, _ = ready.write(self.exported, graph, {})
        options = CompileOptions(
            recipe=self.options.recipe,
            graph=graph,
            layer_precisions=qdq.layer_precisions(lowered),
            cache_folder=self._cache,
            allow_precision_mismatch=self.options.allow_precision_mismatch,
            batches=self.batches,
        )
        path, details = self.target.trial(self.exported, folder, options=options)
        return Made(path=path, details=details, size_bytes=path.stat().st_size)

    def _look(self, choice: Choice, count: int, looker: Looker) -> dict[str, Any]:
        made = self.make(choice)
        if made is None:
            return codec.plain(Look.refused(self.why_refused(choice)))  # type: ignore[no-any-return]
        with self.target.runner(made.path, made.details) as model:
            found = looker.look(model, count)
        return codec.plain(dataclasses.replace(found, size_bytes=made.size_bytes))  # type: ignore[no-any-return]

    def _time(self, choice: Choice, against: Choice, sizes: Sequence[int], seconds: float) -> dict[str, Any]:
        reference, candidate = self.make(against), self.make(choice)
        if reference is None or candidate is None:
            return {}
        inputs = self._feeds(max(sizes))
        rows = self.target.in_turns(reference.path, candidate.path, inputs, seconds=seconds)
        return {"speed": [codec.plain(row) for row in rows]}

    def _sizes(self) -> list[int]:
        """Return the batch sizes that are timed: 1, and as many samples as take a bounded time."""

        def measure() -> dict[str, Any]:
            most = max(1, min(32, self.options.recipe.repository.max_batch_size))
            made = self.make(self.rest)
            if made is None:
                raise CompileError(f"the network does not build in fp32: {self.why_refused(self.rest)}")
            alone = self.target.in_turns(made.path, made.path, self._feeds(1), seconds=0.0)[0].reference_us
            return {"sizes": list(self._feeds(max(1, min(most, int(_BATCH_US / max(alone, 1.0))))))}

        return list(self.ledger.get(f"sizes {self.key(self.rest)}", measure)["sizes"])

    def _feeds(self, most: int) -> dict[int, dict[str, Array]]:
        return timed.feeds(self.batches, self.looker.inputs(self.looker.samples), most=most)

    def key(self, choice: Choice) -> str:
        """Return what a choice's graph is known by: choices of one key are one graph."""
        repairs = [codec.plain(REPAIRS)] if choice.repaired else []
        return files.sha256_of_json([self._base, self.space.key(choice), *repairs])[:24]

    def _space(self) -> Space:
        layers = tuple(find_layers(self.ready.model))
        plans = self.ready.plans
        placed = leaving.place_without(self.ready.model, plans, self.ready.ranges, self.ready.profile, {})
        free = leaving.free(plans, placed)
        weighted = {item.name for item in plans if item.weighted}
        sums, products = unweighted(self.ready.model, plans, self.ready.ranges, self.ready.profile)
        pinned = {item.name for item in plans if called(item.rule)}
        return Space(
            layers=layers,
            plans=_settled(plans),
            free=tuple(name for name in free if name in weighted),
            sums=tuple(name for name in sums if name not in pinned),
            products=tuple(name for name in products if name not in pinned),
        )


def machine(target: CompileTarget, options: BuildOptions) -> str:
    """Return what times hold for: the hardware, and the versions of what runs on it."""
    gpus = [item.name for item in environment.gpus()] if target.name == "tensorrt" else []
    return files.sha256_of_json([environment.cpu_name(), gpus, target.name, target.versions(options.recipe)])


def _settled(plans: Sequence[LayerPlan]) -> tuple[LayerPlan, ...]:
    return tuple(dataclasses.replace(item, rule_index=None) for item in plans)


def _batches(exported: OnnxArtifact) -> Batches:
    alone = bool(exported.details.alone)
    return running.batches_of(exported.model, exported.inputs, exported.outputs, alone=alone)


def _read(cls: Any, value: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the class's
    """Return an entry of a ledger as what it is."""
    try:
        return codec.build(cls, {name: item for name, item in value.items() if name != "cost_s"})
    except RecipeError as error:
        raise MeasureError(f"a recorded measurement is damaged ({error})", hint="measure anew, without it") from None


__all__ = ["SECONDS", "Bench", "DropRecord", "Made", "machine"]
