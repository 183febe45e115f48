import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from repo_builder.core.errors import RecipeError
from repo_builder.datasets.preprocessing import normalise, resize

sides = st.integers(1, 17)


@given(sides, sides, sides, sides)
def test_resize_is_torchs_bilinear_interpolation(rows, columns, height, width):
    images = np.random.default_rng(rows * 100 + columns).normal(size=(2, rows, columns)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images)[:, None], size=(height, width), mode="bilinear", align_corners=False
    )[:, 0]
    got = resize(images, height, width)
    assert got.dtype == np.float32
    assert_allclose(got, expected.numpy(), atol=1e-5)


def test_resize_to_the_same_size_changes_nothing():
    images = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    assert_array_equal(resize(images, 8, 8), images)


def test_normalise_by_channel():
    pixels = np.array([[[[0, 255]], [[51, 102]]]], np.uint8)
    got = normalise(pixels, scale=1 / 255, mean=(0.5, 0.2), std=(0.5, 0.1))
    assert got.dtype == np.float32
    assert_allclose(got, [[[[-1, 1]], [[0, 2]]]], atol=1e-6)


def test_normalise_leaves_its_argument_alone():
    values = np.ones((2, 3), np.float32)
    normalise(values, scale=2.0, mean=1.0)
    assert_array_equal(values, np.ones((2, 3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"std": [1.0, 0.0]}, "std: 0 cannot divide"),
        ({"mean": [1.0, 2.0, 3.0]}, "mean: has 3 numbers for 2 channels"),
        ({"scale": "big"}, "scale: 'big' is neither a number"),
    ],
)
def test_normalisation_that_makes_no_sense(settings, message):
    with pytest.raises(RecipeError, match=message):
        normalise(np.ones((4, 2, 3, 3), np.float32), **settings)
