"""How right a model is, and how close two forms of it are."""

from __future__ import annotations

from dataclasses import dataclass

from repo_builder.core.records import AccuracyRecord


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
        loss: Mean cross-entropy, nats; None where only the best classes are known.
        confusion: Counts, ``confusion[label][prediction]``; empty where there are too many classes for a table.
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
    loss: float | None = None
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    correct: str

    def __post_init__(self) -> None:
        """Refuse a table of counts that is not square over the classes."""
        size = len(self.classes)
        if (self.confusion and len(self.confusion) != size) or any(len(row) != size for row in self.confusion):
            raise ValueError(f"confusion is not {size} by {size}, one row and column a class")


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The rungs, and the first that departs.

    Attributes:
        rungs: From the first form to the served one.
        culprit: Form of the first rung that departs; empty where none does.
        tolerance: Fall of top-1, or difference of outputs that are not classes, that is accepted; None where these are
            held to a signal to noise.
    """

    rungs: tuple[AccuracyRecord, ...]
    culprit: str
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuse a culprit that is no rung below the first."""
        if self.culprit and self.culprit not in [item.form for item in self.rungs[1:]]:
            raise ValueError(f"the culprit '{self.culprit}' is none of the rungs below the first")
