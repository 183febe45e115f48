import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from repo_builder import datasets
from repo_builder.core import assets
from repo_builder.core.errors import DataError, RecipeError
from repo_builder.core.recipe import DataSpec
from repo_builder.core.tensors import DType, TensorSpec

IMAGE = TensorSpec(name="image", dtype=DType.FP32, shape=(3, 32, 32))
FEATURES = TensorSpec(name="features", dtype=DType.FP32, shape=(16,))


def test_the_shipped_digits_are_scikit_learns():
    reference = pytest.importorskip("sklearn.datasets", reason="scikit-learn holds the original").load_digits()
    with np.load(assets.packaged("data", "digits.npz")) as stored:
        assert_array_equal(stored["images"], reference.images)
        assert_array_equal(stored["labels"], reference.target)


def test_digits_become_images_between_minus_one_and_one():
    digits = datasets.load(DataSpec(source="digits"), inputs=(IMAGE,), seed=0)
    samples = digits.split("test")
    images = samples.inputs["image"]
    assert images.shape == (len(samples), 3, 32, 32)
    assert images.dtype == np.float32
    assert images.min() == -1
    assert images.max() == 1
    assert_array_equal(images[:, 0], images[:, 2])
    assert samples.labels.dtype == np.int64
    assert digits.classes == tuple("0123456789")


def test_digits_follow_the_models_input():
    small = TensorSpec(name="x", dtype=DType.FP32, shape=(1, 8, 8))
    digits = datasets.load(DataSpec(source="digits"), inputs=(small,), seed=0)
    with np.load(assets.packaged("data", "digits.npz")) as stored:
        expected = stored["images"][digits.parts["validation"]] / np.float32(8) - 1
    assert_array_equal(digits.split("validation").inputs["x"][:, 0], expected.astype(np.float32))


def test_digits_refuse_a_model_of_features():
    with pytest.raises(DataError, match="images"):
        datasets.load(DataSpec(source="digits"), inputs=(FEATURES,), seed=0)


def test_jets_are_balanced_finite_and_raw():
    jets = datasets.load(DataSpec(source="jets"), inputs=(FEATURES,), seed=0)
    assert jets.classes == ("g", "q", "w", "z", "t")
    assert sum(map(len, jets.parts.values())) == 20_000
    test = jets.split("test")
    assert np.bincount(test.labels).tolist() == [800] * 5
    assert np.isfinite(test.inputs["features"]).all()
    assert test.inputs["features"][:, 14].max() > 100  # a mass in GeV, not standardised
    with np.load(assets.packaged("data", "jets.npz")) as stored:
        assert stored["feature_names"][14] == "mass_mmdt"


def test_jets_refuse_another_number_of_features():
    short = TensorSpec(name="features", dtype=DType.FP32, shape=(15,))
    with pytest.raises(DataError, match=r"\[16\].*features fp32\[15\]"):
        datasets.load(DataSpec(source="jets"), inputs=(short,), seed=0)


def test_an_unknown_argument_is_named():
    with pytest.raises(RecipeError, match=r"data\.arguments\.width: unknown argument 'width'"):
        datasets.load(DataSpec(source="jets", arguments={"width": 1}), inputs=(FEATURES,), seed=0)


def test_the_fingerprint_changes_with_data_arguments_split_and_seed():
    def fingerprint(seed=0, inputs=(FEATURES,), **settings):
        return datasets.load(DataSpec(source="jets", **settings), inputs=inputs, seed=seed).fingerprint

    renamed = TensorSpec(name="x", dtype=DType.FP32, shape=(16,))
    found = [fingerprint(), fingerprint(seed=1), fingerprint(test=0.3), fingerprint(inputs=(renamed,))]
    assert len(set(found)) == len(found)
    assert fingerprint() == found[0]


def test_held_out_samples_are_told_apart_from_other_ones():
    def held_out(seed=0, **settings):
        return datasets.load(DataSpec(source="jets", **settings), inputs=(FEATURES,), seed=seed).held_out

    assert held_out() == held_out(calibration=64, validation=0.2)
    assert held_out() != held_out(seed=1)
    assert held_out() != held_out(test=0.1)


def test_calibration_samples_are_stratified_and_apart_from_training():
    jets = datasets.load(DataSpec(source="jets", calibration=500), inputs=(FEATURES,), seed=3)
    assert np.bincount(jets.split("calibration").labels).tolist() == [100] * 5
    assert not set(jets.parts["calibration"]) & set(jets.parts["train"])


def test_loading_needs_numpy_only():
    code = (
        "import sys, json; from repo_builder import datasets, recipes; r = recipes.load('vgg');"
        "datasets.load(r.data, inputs=r.model.inputs, seed=0).split('test');"
        "print(json.dumps([m for m in ('torch', 'onnxruntime', 'tensorrt', 'PIL', 'sklearn') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_data_files_are_those_that_the_shipped_weights_were_trained_with():
    digests = {
        name: hashlib.sha256(assets.packaged("data", name).read_bytes()).hexdigest()
        for name in ("digits.npz", "jets.npz")
    }
    notes = assets.packaged("data", "README.md").read_text(encoding="utf-8")
    for name, digest in digests.items():
        assert digest in notes, name
