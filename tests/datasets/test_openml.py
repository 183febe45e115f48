import hashlib
import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from repo_builder import datasets
from repo_builder.core import assets
from repo_builder.core.errors import DataError
from repo_builder.core.recipe import DataSpec
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.datasets import openml

FEATURES = TensorSpec(name="features", dtype=DType.FP32, shape=(16,))
FILE = "https://openml.invalid/data/jets.arff"
with np.load(assets.packaged("data", "jets.npz")) as _stored:
    NAMES = _stored["feature_names"].tolist()


def arff(names=NAMES, rows=20, classes="gqtwz", end="\n"):
    """A file in OpenML's form: its classes are in another order than ours, and here its features too."""
    lines = ["% comment", "@RELATION jets", ""]
    lines += [f"@ATTRIBUTE {name} REAL" for name in reversed(names)]
    lines += ["@ATTRIBUTE class {%s}" % ",".join(classes), "", "@DATA"]  # noqa: UP031 - braces of ARFF
    for row in range(rows):
        values = [row + place / 100 for place in range(len(names))]
        lines.append(",".join([*(f"{value:.6g}" for value in reversed(values)), classes[row % len(classes)]]))
    return end.join(lines) + end


def load(data_dir=None):
    return datasets.load(DataSpec(source="jets-openml"), inputs=(FEATURES,), seed=0, data_dir=data_dir)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_features_and_classes_come_in_the_order_of_the_simulated_jets(tmp_path, end):
    (tmp_path / "set.arff").write_bytes(arff(end=end).encode())
    jets = load(tmp_path)
    assert jets.classes == ("g", "q", "w", "z", "t")
    train = jets.split("train")
    rows = jets.parts["train"]
    assert_array_equal(train.labels, np.array([0, 1, 4, 2, 3])[rows % 5])
    expected = (rows[:, None] + np.arange(16) / 100).astype(np.float32)
    np.testing.assert_allclose(train.inputs["features"], expected, rtol=1e-5)


def test_quoted_names_and_classes(tmp_path):
    text = arff().replace("@ATTRIBUTE zlogz", "@attribute 'zlogz'").replace(",g\n", ",'g'\n")
    (tmp_path / "set.arff").write_text(text)
    assert len(load(tmp_path).split("test")) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (arff(names=[name for name in NAMES if name != "zlogz"]), "no attribute 'zlogz'"),
        (arff().replace("0.15", "?", 1), r"cannot be understood .*'\?'"),
        (arff(classes="gqtwx"), "the class of row 4 of the data is 'x'"),
        (arff().replace("@DATA", ""), "no @data line"),
        (arff().replace("0.15", "nan", 1), "row 0 of the data holds NaN"),
    ],
)
def test_a_file_that_makes_no_sense(tmp_path, text, message):
    (tmp_path / "set.arff").write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_folder_without_the_file(tmp_path):
    with pytest.raises(DataError, match=r"holds 0 \.arff files.*openml\.org/d/42468"):
        load(tmp_path)


def describe(url, text):
    digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    return json.dumps({"data_set_description": {"id": "42468", "url": url, "md5_checksum": digest}}).encode()


def test_the_download_follows_openmls_description_once(tmp_path, monkeypatch, serve_url):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = arff(rows=50)
    asked = serve_url({openml.DESCRIPTION: describe(FILE.replace("https", "http"), text), FILE: text.encode()})
    assert load().fingerprint == load().fingerprint
    assert asked == [openml.DESCRIPTION, FILE]


def test_a_download_with_another_md5_is_refused(tmp_path, monkeypatch, serve_url):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    serve_url({openml.DESCRIPTION: describe(FILE, "something else"), FILE: arff().encode()})
    with pytest.raises(DataError, match="the download has the md5"):
        load()


def test_a_description_that_is_none(tmp_path, monkeypatch, serve_url):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    serve_url({openml.DESCRIPTION: b"<html>maintenance</html>"})
    with pytest.raises(DataError, match=r"is not OpenML's description .*--data-dir"):
        load()
