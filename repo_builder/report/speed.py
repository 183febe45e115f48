"""Whether a lower precision pays on the machine that built it, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from repo_builder.core.details import SpeedRecord


def in_words(rows: Sequence[SpeedRecord], precisions: str) -> str:
    """Say in one sentence whether it pays, as in ``int8 against fp32 ...: 1.90 times as fast at batch 1``.

    Args:
        rows: One a batch size; at least one.
        precisions: What the compiled model is made of, as in ``int8``.
    """
    shares = " and ".join(f"{row.speedup:.2f} times as fast at batch {row.batch_size}" for row in rows)
    measured = f"{precisions} against fp32 in ONNX Runtime on one thread of this CPU: {shares}"
    if all(row.speedup < 1 for row in rows):
        return f"{measured}. {precisions} is SLOWER than fp32 here: serve this model in fp32 on CPUs like this one."
    if any(row.speedup < 1 for row in rows):
        return f"{measured}. It does not pay at every batch size: look at the ones that you serve."
    return f"{measured}."
