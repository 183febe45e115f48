from __future__ import annotations

import pytest

from repo_builder.core.details import SpeedRecord
from repo_builder.report import speed


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ((2.0, 1.8), "2.00 times as fast at batch 1 and 1.80 times as fast at batch 32."),
        ((0.5, 0.9), "int8 is SLOWER than fp32 here"),
        ((0.5, 1.9), "does not pay at every batch size"),
    ],
)
def test_whether_it_pays_is_said_plainly(speedups: tuple[float, float], expected: str) -> None:
    rows = [
        SpeedRecord(batch_size=size, reference_us=value, candidate_us=1.0)
        for size, value in zip((1, 32), speedups, strict=True)
    ]
    assert expected in speed.in_words(rows, "int8")
