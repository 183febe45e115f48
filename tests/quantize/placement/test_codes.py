"""Codes cover what they are asked to, 0 is exact, and no step is wasted."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.quantize.placement.codes import codes_for

BOUNDS = st.floats(-1e20, 1e20).filter(lambda value: value == 0 or abs(value) > 1e-20)


@given(one=BOUNDS, other=BOUNDS, kept=st.floats(0.01, 1))
def test_unsigned_codes_span_the_kept_range_with_0_among_them(one: float, other: float, kept: float) -> None:
    low, high = sorted((one, other))
    amax = max(abs(low), abs(high)) * kept
    codes = codes_for(low, high, amax, "uint8")
    assert codes.of(np.float32([0]))[0] == codes.zero_point
    least, most = max(min(low, 0), -amax), min(max(high, 0), amax)
    assert codes.low <= least + float(codes.scale) * 0.51
    assert codes.high >= most - float(codes.scale) * 0.51
    if most > least:
        assert abs((codes.high - codes.low) - (most - least)) <= 1e-5 * (most - least)
    if low >= 0:
        assert codes.zero_point == 0
        assert codes.high <= most or most == 0  # not beyond a Clip that ends there


@given(amax=st.floats(1e-20, 1e20))
def test_signed_codes_are_symmetric(amax: float) -> None:
    codes = codes_for(-amax, amax / 3, amax, "int8")
    assert codes.zero_point == 0
    np.testing.assert_array_equal(codes.of(np.array([-amax, 0, amax])), [-127, 0, 127])


def test_a_tensor_that_is_0_throughout_has_codes_too() -> None:
    for dtype in ("uint8", "int8"):
        codes = codes_for(0, 0, 0, dtype)
        assert codes.scale == 1
        assert codes.of(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
