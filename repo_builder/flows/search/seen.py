"""Ranges for any choice: what calibration saw under each calibrator, found when it is first asked for, and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from repo_builder.core import files, loading, progress
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.recipe import InputQuantizer
from repo_builder.core.samples import Batches
from repo_builder.datasets import Dataset
from repo_builder.flows.build import keys, repairing, running
from repo_builder.flows.build.lowering import Ready
from repo_builder.flows.search.choices import REPAIRS
from repo_builder.quantize import LayerPlan, store
from repo_builder.quantize.ranges import Observed, Ranges

# What is tried beside a rule's own; dynamic ranges are another kind of layer.
CALIBRATORS = (
    InputQuantizer(calibrator="max"),
    InputQuantizer(calibrator="percentile", percentile=99.99),
    InputQuantizer(calibrator="percentile", percentile=99.9),
    InputQuantizer(calibrator="mse"),
    InputQuantizer(calibrator="entropy"),
)


class Seen:
    """What calibration saw.

    Args:
        exported: The artifact.
        ready: What placement works on.
        dataset: Its calibration samples.
        batches: How the model takes samples.
        path: Where what is seen is kept.
    """

    def __init__(self, exported: OnnxArtifact, ready: Ready, dataset: Dataset, batches: Batches, path: Path) -> None:
        self._ready, self._spec, self._path = ready, exported.recipe.quantize, path
        self._recipe, self._data = exported.recipe, dataset.fingerprint
        self._samples = dict(running.whole(batches, dataset.split("calibration").inputs))
        self.key = files.sha256_of_json({
            "graph": {name: sha256 for name, sha256 in exported.files.items() if name.endswith(".onnx")},
            "data": dataset.fingerprint,
            "backend": self._spec.backend,
            "batch_size": self._spec.batch_size,
            "code": keys.code_version("quantize", "core/graphs.py"),
            "libraries": keys.versions("onnxruntime", "numpy", self._spec.backend),
        })  # fmt: skip
        self._known = store.read_observed(path, self.key)
        self._calibrators: set[InputQuantizer] = set()

    def ranges(self, plans: Sequence[LayerPlan]) -> Ranges:
        """Return the ranges that calibration gives under plans: the very ones that a build of them finds."""
        with loading.needs("build", what="calibrating"):
            from repo_builder.quantize.calibrate import calibrate
        for one in sorted({item.rule.input for item in plans if item.rule}, key=str):
            if one not in self._calibrators and one.calibrator != "dynamic":
                self._calibrators.add(one)  # for all layers at once: a graph runs once a calibrator, not once a layer
                self._keep(*calibrate(self._ready.model, _all_by(plans, one), self._spec, self._samples, self._known))
        found, seen, ran = calibrate(self._ready.model, plans, self._spec, self._samples, self._known)
        self._keep(found, seen, ran)
        return found

    def repaired(self, plans: tuple[LayerPlan, ...], folder: Path) -> Ready:
        """Return what placement works on under plans with repairs made for them: the very ones that a build makes.

        Args:
            plans: What each layer is to become.
            folder: Where files that this leaves may lie.
        """
        recipe = dataclasses.replace(self._recipe, quantize=dataclasses.replace(self._spec, repair=REPAIRS))
        with progress.quiet():
            made = repairing.calibrated(
                self._ready.model, plans, recipe, self._samples, folder, data=self._data, earlier=folder / "none.npz"
            )
        return dataclasses.replace(self._ready, model=made.model, plans=plans, ranges=made.ranges)

    def _keep(self, found: Ranges, seen: Observed, ran: bool) -> None:
        if ran:
            self._known = _together(self._known, seen)
            store.write(self._path, self.key, self._known, found)


def _all_by(plans: Sequence[LayerPlan], one: InputQuantizer) -> list[LayerPlan]:
    return [
        dataclasses.replace(item, rule=dataclasses.replace(item.rule, input=one))
        if item.rule is not None and item.precision == "int8" and item.rule.input.calibrator != "dynamic"
        else item
        for item in plans
    ]


def _together(*parts: Observed | None) -> Observed:
    found = Observed()
    for part in parts:
        if part is not None:
            found.low.update(part.low)
            found.high.update(part.high)
            found.amax.update(part.amax)
    return found
