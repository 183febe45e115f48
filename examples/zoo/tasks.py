"""What each network of the zoo is for, and how two answers are held against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def texts(scores: Array) -> list[tuple[int, ...]]:
    """Return what a recogniser reads: the likeliest letters, repeats and blanks left out (CTC)."""
    rows = []
    for best in scores.argmax(-1):
        kept = [int(item) for place, item in enumerate(best) if item and (place == 0 or item != best[place - 1])]
        rows.append(tuple(kept))
    return rows


def same_text(exact: Array, served: Array) -> float:
    """Return the fraction of lines that read the same."""
    return float(np.mean([one == other for one, other in zip(texts(exact), texts(served), strict=True)]))


def mask_overlap(exact: Array, served: Array) -> float:
    """Return intersection over union of all pixels that are text (0.3 is PP-OCR's own threshold)."""
    one, other = exact > 0.3, served > 0.3
    return float((one & other).sum() / max(1, (one | other).sum()))


def same_class(exact: Array, served: Array) -> float:
    """Return the fraction of samples of the same class."""
    return float((exact.argmax(-1) == served.argmax(-1)).mean())


def same_answer(exact: Array, served: Array) -> float:
    """Return the fraction of files of the same kind; magika gives no kind where no score reaches 0.5."""

    def answers(scores: Array) -> Array:
        return np.where(scores.max(-1) >= 0.5, scores.argmax(-1), -1)

    return float((answers(exact) == answers(served)).mean())


def same_neighbour(exact: Array, served: Array) -> float:
    """Return the fraction of sentences whose nearest other sentence is the same."""

    def nearest(vectors: Array) -> Array:
        closeness = vectors @ vectors.T
        np.fill_diagonal(closeness, -np.inf)
        return closeness.argmax(1)

    return float((nearest(exact) == nearest(served)).mean())


def same_decision(exact: Array, served: Array) -> float:
    """Return the fraction of frames that are speech, or not, in both."""
    return float(((exact > 0.5) == (served > 0.5)).mean())


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network is judged by.

    Attributes:
        what: In words.
        judge: (fp32 outputs, served outputs), samples first → a fraction.
        bar: What has to be reached.
    """

    what: str
    judge: Callable[[Array, Array], float]
    bar: float


FASTER = 1.5  # times as fast as fp32 where convolutions or matrix products carry the time
TASKS = {
    "magika": Task(what="same kind", judge=same_answer, bar=0.99),
    "rec": Task(what="same text", judge=same_text, bar=30 / 32),
    "det": Task(what="mask IoU", judge=mask_overlap, bar=0.96),
    "cls": Task(what="same class", judge=same_class, bar=0.99),
    "minilm": Task(what="same nearest neighbour", judge=same_neighbour, bar=0.90),
    "minilm_torch": Task(what="same nearest neighbour", judge=same_neighbour, bar=0.90),
    "vad": Task(what="same decision", judge=same_decision, bar=0.99),
}
