"""What is recorded of a layer and of a form's outputs: manifests keep it, measurements repeat it, reports show it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from repo_builder.core.precisions import PRECISIONS
from repo_builder.core.recipe import Precision

UNKNOWN = "unknown"
FUSED = "fused"
# How many bits of a value a precision keeps, those included that no rule asks for and a runtime may take.
_WIDTH = {"bf16": 16} | {name: kind.bits for name, kind in PRECISIONS.items()}


AS_IT_CAME = "as it came"  # the rule of a layer of a graph of which nothing is asked


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """What one layer was asked to be, what it became, and what calibration found.

    Attributes:
        name: Qualified module name, or the node's name in a graph from elsewhere.
        type: Module type, as in ``Conv2d``.
        rule: What the rule that won selects, as in ``type=Conv2d``; empty where none matched; ``AS_IT_CAME`` where
            there are no rules and the precision is the one that the layer came with.
        asked: The precision that the recipe asks for.
        got: What the compiled model computes it in; None until a target has said so.
        reason: Why it is not what was asked, one sentence; empty where it is.
        values: What its input and weight are rounded to, where it computes in more than that, as fp8 on a CPU; else
            empty.
        calibrator: Input calibrator, as in ``percentile``, or ``best: percentile`` where it was chosen; empty unless
            int8 or fp8.
        weight_calibrator: The weight's, where it was chosen, as in ``best: mse``, and of int4 weights; else empty.
        percentile: Percent of absolute inputs kept; None for the other calibrators.
        input_amax: Largest absolute input that the range keeps; None unless int8 or fp8.
        weight_amax: Largest absolute weight kept, over all channels; None unless int8 or fp8 with a weight.
        sqnr_db: Signal to noise of the layer's output on its own, on calibration data, dB; None for fp32, and where it
            was not measured.
        block: Weights of one output that share a scale, as int4 has them; None for other precisions.
        weights: How many weights it has; None unless int4.
        weight_bytes: What they take as they are stored, scales and zero points with them; None unless int4.
    """

    name: str
    type: str
    rule: str = ""
    asked: Precision
    got: str | None = None
    reason: str = ""
    values: str = ""
    calibrator: str = ""
    weight_calibrator: str = ""
    percentile: float | None = None
    input_amax: float | None = None
    weight_amax: float | None = None
    sqnr_db: float | None = None
    block: int | None = None
    weights: int | None = None
    weight_bytes: int | None = None

    @property
    def precision(self) -> str:
        """What the layer is: what it became where that is known, else what was asked."""
        return self.got or self.asked

    @property
    def exactness(self) -> str:
        """The precision that says how exact the layer is: that of its values, whatever it computes in."""
        return self.values or self.precision

    @property
    def form(self) -> str:
        """The precision as tables show it, as in ``int4 weights, block 32``."""
        if PRECISIONS.get(self.precision, PRECISIONS["fp32"]).codes != "weight":
            return self.precision
        return f"{self.precision} weights" + (f", block {self.block}" if self.block else "")

    @property
    def calibration(self) -> str:
        """The calibrator as people read it, as in ``percentile 99.99``; empty unless int8 or fp8."""
        found = self.calibrator if self.percentile is None else f"{self.calibrator} {self.percentile:g}"
        weight = f"weight {self.weight_calibrator}" if self.weight_calibrator else ""
        return ", ".join(item for item in (found, weight) if item)


def blocked_bytes(rows: Iterable[LayerRecord]) -> tuple[int, int]:
    """Return what the weights of int4 layers take in fp32, and as they are stored."""
    found = [(4 * (row.weights or 0), row.weight_bytes or 0) for row in rows]
    return sum(before for before, _ in found), sum(after for _, after in found)


@dataclass(frozen=True, kw_only=True)
class RepairRecord:
    """What was done so that int8 loses less, and what it gained at the network's outputs.

    Attributes:
        name: The recipe's key, as in ``equalize``.
        did: What it did, one sentence without its full stop.
        samples: Calibration samples that judged it; it has not seen them.
        before_db: Lowest signal to noise of an output in int8 without it, against the network in fp32, dB.
        after_db: The same with it; None where it found nothing to do.
        kept: Whether it stays.
    """

    name: str
    did: str
    samples: int
    before_db: float
    after_db: float | None = None
    kept: bool

    def __str__(self) -> str:
        """Return it as one line, as in ``equalize: 4 pairs of layers: 18.2 → 24.9 dB of the outputs``."""
        if self.after_db is None:
            return f"{self.name}: {self.did}"
        change = f"{self.before_db:.1f} → {self.after_db:.1f} dB of the outputs on {self.samples} samples kept aside"
        worse = self.after_db < self.before_db
        end = (", worse, and kept as the recipe says" if worse else "") if self.kept else ", dropped"
        return f"{self.name}: {self.did}: {change}{end}"


@dataclass(frozen=True, kw_only=True)
class OutputRecord:
    """How close one output is to the same output of another form, on the same samples; what is unknown is None.

    Attributes:
        name: The output's name; empty where the form has one alone and it was not named.
        agreement: Fraction that agrees: of the samples, those with the same class, or within the limit that was given;
            of values that are no floating-point numbers, those that are equal.
        max_abs_diff: Largest absolute difference of any value; None for strings.
        mean_abs_diff: Mean absolute difference; None for strings.
        sqnr_db: Signal to noise over all values, 10·log10(Σ reference² / Σ difference²), within ±200 dB; None for
            strings and truth values.
        cosine: Cosine between the two, the mean over the samples (over all of them where a sample is one number); None
            where ``sqnr_db`` is.
        relative_error: RMS of the difference over the RMS by which the reference varies between the samples: from 1 on,
            the output no longer tells samples apart. Over the reference's own RMS where it is the same for every
            sample; None where ``sqnr_db`` is, and where the reference is zero and the other is not.
        departs: In one phrase, how it departs beyond the limits; empty where it does not, and where nothing was judged.
    """

    name: str = ""
    agreement: float | None = None
    max_abs_diff: float | None = None
    mean_abs_diff: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    relative_error: float | None = None
    departs: str = ""


@dataclass(frozen=True, kw_only=True)
class AccuracyRecord:
    """One form of the model on the held-out samples, compared with the form that it derives from.

    Attributes:
        form: ``fp32``, ``exported``, ``fine-tuned``, ``placed``, ``onnxruntime``, ``tensorrt``, ``engine``,
        ``pipeline`` or ``served``.
        samples: Number of samples scored.
        output: The output that is scored; top1, its interval and the p-value are of it.
        top1: Fraction of them classified right; None where outputs are not classes.
        low: Lower end of the 95 % Wilson interval of top1.
        high: Upper end of it.
        outputs: One entry an output, against the form before; empty for the first form.
        worst: Name of the output that departs most: of those that depart, else of all, the lowest signal to noise.
        p_value: McNemar's test of the change in accuracy; None for the first and without labels.
        departs: Whether it departs from the form before by more than the limits.
    """

    form: str
    samples: int
    output: str = ""
    top1: float | None = None
    low: float | None = None
    high: float | None = None
    outputs: tuple[OutputRecord, ...] = ()
    worst: str = ""
    p_value: float | None = None
    departs: bool = False

    @property
    def agreement(self) -> float | None:
        """The least agreement of any output; None where none was compared."""
        return min((item.agreement for item in self.outputs if item.agreement is not None), default=None)

    @property
    def max_abs_diff(self) -> float | None:
        """The largest difference of any output; None where none was compared."""
        return max((item.max_abs_diff for item in self.outputs if item.max_abs_diff is not None), default=None)

    @property
    def mean_abs_diff(self) -> float | None:
        """The largest mean difference of any output; None where none was compared."""
        return max((item.mean_abs_diff for item in self.outputs if item.mean_abs_diff is not None), default=None)

    @property
    def sqnr_db(self) -> float | None:
        """The lowest signal to noise of any output, dB; None where none was compared."""
        return min((item.sqnr_db for item in self.outputs if item.sqnr_db is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One layer of the recipe, asked against got.

    Attributes:
        layer: Its name in the recipe.
        node: Its ONNX node.
        asked: ``int8``, ``fp8``, ``fp16`` or ``fp32``.
        got: What the engine computes it in; ``fused`` where it is part of a region, ``unknown`` where it is not said.
        engine_layer: The engine's layer that stands for it; empty where none was found.
        kind: That layer's type.
        tactic: Its kernel.
        region: For a fused layer, what its region reads and writes, as in ``fp32, int8 → fp32``.
    """

    layer: str
    node: str
    asked: str
    got: str
    engine_layer: str = ""
    kind: str = ""
    tactic: str = ""
    region: str = ""

    @property
    def holds(self) -> bool:
        """Whether the engine says that the layer became what was asked."""
        return self.asked == self.got

    @property
    def departs(self) -> bool:
        """Whether the engine says that the layer became something else; what it does not tell is no departure.

        A float layer that TensorRT runs in more bits than asked, because that was faster, keeps the promise: it is at
        least as exact. An int8 layer that runs in float does not: it lacks the speed that it was quantized for.
        """
        asked, got = _WIDTH.get(self.asked), _WIDTH.get(self.got)
        if self.got in (FUSED, UNKNOWN) or self.holds:
            return False
        return asked is None or got is None or got < asked or self.asked not in ("fp16", "bf16")

    def __str__(self) -> str:
        """Return one sentence: ``conv1 was asked as int8 and runs in fp32 (CaskConvolution)``."""
        if self.got == FUSED:
            told = f"TensorRT tells no types inside, it reads and writes {self.region}"
            return f"{self.layer} was asked as {self.asked} and is fused with others into {self.engine_layer}: {told}"
        if self.got == UNKNOWN:
            return f"{self.layer} was asked as {self.asked}, and the engine does not say what it became"
        return f"{self.layer} was asked as {self.asked} and runs in {self.got} ({self.kind})"


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of fine-tuning.

    Attributes:
        epoch: Its number; 0 is the model as it was calibrated.
        loss: Mean loss over the training samples; None for epoch 0.
        validation_loss: Mean loss over the validation samples.
        validation_top1: Top-1 there, a fraction; None without labels.
    """

    epoch: int
    loss: float | None = None
    validation_loss: float
    validation_top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneRecord:
    """How a model was fine-tuned.

    Attributes:
        backend: Whose fake quantizers rounded, as ``quantize.backend`` names them.
        placement: The placement that it was trained for, as in ``onnxruntime-cpu``.
        device: ``cpu`` or ``cuda``.
        loss: ``distillation`` or ``cross-entropy``.
        ranges: ``learned`` or ``frozen``.
        epochs: Epochs that were run.
        best_epoch: The one that was kept, the best on validation; 0 where none was better than the calibrated model.
        history: One entry an epoch, from 0.
        before: The calibrated model without fine-tuning, placed, on the held-out samples, against fp32.
    """

    backend: str
    placement: str
    device: str
    loss: str
    ranges: str
    epochs: int
    best_epoch: int
    history: tuple[EpochRecord, ...] = ()
    before: AccuracyRecord
