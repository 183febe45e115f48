"""How right a model is, and how close two forms of it are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AccuracyResult:
    """How well outputs name the classes of a held-out split.

    Macro averages run over the classes that occur among labels or predictions; a ratio without cases counts 0.

    Attributes:
        samples: Number of samples.
        top1: Fraction classified right.
        low: Lower end of the 95 % Wilson interval of top1.
        high: Upper end of it.
        macro_precision: Mean over classes of the precision.
        macro_recall: Mean over classes of the recall.
        macro_f1: Mean over classes of the F1 score.
        loss: Mean cross-entropy, nats.
        confusion: Counts, ``confusion[label][prediction]``.
        classes: Names of the classes.
        correct: One character a sample, in their order: 1 where it was classified right, else 0.
    """

    samples: int
    top1: float
    low: float
    high: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    loss: float
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    correct: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How close the outputs of two forms of a model are on the same samples.

    Attributes:
        agreement: Fraction of samples that agree: same argmax, or within the tolerance where one was given.
        max_abs_diff: Largest absolute difference of any output.
        mean_abs_diff: Mean absolute difference.
    """

    agreement: float
    max_abs_diff: float
    mean_abs_diff: float


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One form of the model on the held-out samples, compared with the form above it.

    Attributes:
        form: ``fp32``, ``fake-quantized``, ``onnx``, ``engine`` or ``served``.
        samples: Number of samples.
        top1: Fraction classified right; None where outputs are not classes.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end of it.
        agreement: Fraction of samples that agree with the rung above; None for the first.
        max_abs_diff: Largest absolute difference of the outputs; None for the first.
        mean_abs_diff: Mean absolute difference; None for the first.
        p_value: McNemar's test of the change in accuracy; None for the first and without labels.
        departs: Whether it departs more than the tolerance.
    """

    form: str
    samples: int
    top1: float | None = None
    low: float | None = None
    high: float | None = None
    agreement: float | None = None
    max_abs_diff: float | None = None
    mean_abs_diff: float | None = None
    p_value: float | None = None
    departs: bool = False


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The rungs, and the first that departs.

    Attributes:
        rungs: From the first form to the served one.
        culprit: Form of the first rung that departs; empty where none does.
        tolerance: Fall of top-1, or difference of outputs that are not classes, that is accepted.
    """

    rungs: tuple[Rung, ...]
    culprit: str
    tolerance: float | None = None
