import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from repo_builder import datasets
from repo_builder.core.errors import DataError, MissingDependency, RecipeError
from repo_builder.core.recipe import DataSpec
from repo_builder.core.tensors import DType, TensorSpec

ROW = TensorSpec(name="features", dtype=DType.FP32, shape=(3,))
IMAGE = TensorSpec(name="image", dtype=DType.FP32, shape=(3, 4, 5))


def load(path, inputs=(ROW,), data_dir=None, **arguments):
    return datasets.load(DataSpec(source=str(path), arguments=arguments), inputs=inputs, seed=0, data_dir=data_dir)


def everything(dataset):
    """All samples in the order of the file."""
    parts = {name: dataset.split(name) for name, held in dataset.parts.items() if len(held)}
    order = np.argsort(np.concatenate([dataset.parts[name] for name in parts]))
    inputs = np.concatenate([next(iter(part.inputs.values())) for part in parts.values()])[order]
    labels = [part.labels for part in parts.values()]
    return inputs, None if labels[0] is None else np.concatenate(labels)[order]


@pytest.fixture
def rows():
    generator = np.random.default_rng(1)
    return generator.normal(size=(20, 3)), np.arange(20) % 4


# ---- .npz


@pytest.mark.parametrize("key", ["features", "x", "X"])
@pytest.mark.parametrize("label", ["y", "labels"])
def test_npz(tmp_path, rows, key, label):
    np.savez(tmp_path / "mine.npz", **{key: rows[0], label: rows[1]})
    dataset = load(tmp_path / "mine.npz")
    assert dataset.name == "mine.npz"
    assert dataset.classes == ("0", "1", "2", "3")
    inputs, labels = everything(dataset)
    assert inputs.dtype == np.float32
    assert_array_equal(inputs, rows[0].astype(np.float32))
    assert_array_equal(labels, rows[1])


def test_npz_with_text_labels(tmp_path, rows):
    names = np.array(["d", "a", "c", "b"])
    np.savez(tmp_path / "mine.npz", x=rows[0], y=names[rows[1]])
    assert load(tmp_path / "mine.npz").classes == ("a", "b", "c", "d")
    ordered = load(tmp_path / "mine.npz", classes=["d", "a", "c", "b"])
    assert_array_equal(everything(ordered)[1], rows[1])
    with pytest.raises(DataError, match="the label of sample 0 is 'd', which is no class"):
        load(tmp_path / "mine.npz", classes=["a", "b", "c"])


def test_npz_names_its_classes(tmp_path, rows):
    np.savez(tmp_path / "mine.npz", x=rows[0], y=rows[1], classes=["n", "e", "s", "w"])
    assert load(tmp_path / "mine.npz").classes == ("n", "e", "s", "w")


def test_npz_of_several_inputs(tmp_path, rows):
    other = TensorSpec(name="count", dtype=DType.INT32, shape=())
    np.savez(tmp_path / "mine.npz", features=rows[0], count=np.arange(20), y=rows[1])
    samples = load(tmp_path / "mine.npz", inputs=(ROW, other)).split("train")
    assert samples.inputs["count"].dtype == np.int32
    assert samples.inputs["features"].shape == (len(samples), 3)
    with pytest.raises(DataError, match=r"no array 'weight'.*features, count, y"):
        load(tmp_path / "mine.npz", inputs=(ROW, TensorSpec(name="weight", dtype=DType.FP32, shape=())))


def test_npz_of_images_with_channels_last(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), np.uint8)
    np.savez(tmp_path / "mine.npz", image=pixels, y=np.arange(10) % 2)
    with pytest.raises(DataError, match=r"\[4, 5, 3\].*layout = \"hwc\""):
        load(tmp_path / "mine.npz", inputs=(IMAGE,))
    dataset = load(tmp_path / "mine.npz", inputs=(IMAGE,), layout="hwc", scale=1 / 255, mean=[0.5] * 3, std=[0.25] * 3)
    expected = (pixels.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    assert_allclose(everything(dataset)[0], expected, atol=1e-5)


def test_targets_that_are_no_classes_stay_as_they_are(tmp_path, rows):
    np.savez(tmp_path / "mine.npz", x=rows[0], y=rows[0][:, 0])
    dataset = load(tmp_path / "mine.npz")
    assert dataset.classes == ()
    assert_array_equal(everything(dataset)[1], rows[0][:, 0])


def test_data_without_labels(tmp_path, rows):
    np.savez(tmp_path / "mine.npz", x=rows[0])
    dataset = load(tmp_path / "mine.npz")
    assert dataset.split("test").labels is None
    assert dataset.classes == ()


def test_held_out_files_are_test_samples_and_nothing_else(tmp_path, rows):
    np.savez(tmp_path / "test.npz", x=rows[0], y=rows[1])
    dataset = load(tmp_path / "test.npz", split="test")
    assert len(dataset.split("test")) == 20
    with pytest.raises(DataError, match="train part is empty: every sample is held out"):
        dataset.split("train")
    with pytest.raises(RecipeError, match="'tset' is not 'auto' or 'test'"):
        load(tmp_path / "test.npz", split="tset")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.empty((0, 3)), "y": np.empty(0, int)}, "there are no samples"),
        ({"x": np.full((20, 3), np.nan)}, "sample 0 holds NaN"),
        ({"x": np.where(np.arange(60).reshape(20, 3) == 40, np.inf, 0.0)}, "sample 13 holds NaN or an infinite value"),
        ({"x": np.where(np.arange(60).reshape(20, 3) == 40, 1e300, 0.0)}, "sample 13 holds NaN or an infinite value"),
        ({"x": np.zeros((20, 4))}, r"shape \[4\].*features fp32\[3\]"),
        ({"x": np.zeros((20, 3), complex)}, "complex128 values"),
        ({"x": np.zeros((19, 3))}, "numbers of samples differ .features 19, labels 20"),
        ({"y": np.array([-1] + [0] * 19), "classes": ["a"]}, "the label of sample 0 is -1, not between 0 and 0"),
        ({"y": np.array([0] * 19 + [7]), "classes": ["a", "b"]}, "the label of sample 19 is 7, not between 0 and 1"),
        ({"y": np.array([0.5] * 19 + [np.nan])}, "the label of sample 19 is nan"),
        ({"y": np.zeros((20, 2), complex)}, "the labels are complex128"),
    ],
)
def test_npz_that_makes_no_sense(tmp_path, rows, change, message):
    np.savez(tmp_path / "mine.npz", **({"x": rows[0], "y": rows[1]} | change))
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "mine.npz")
    assert caught.value.where == str(tmp_path / "mine.npz")


def test_npz_that_is_damaged_or_holds_objects(tmp_path, rows):
    path = tmp_path / "mine.npz"
    np.savez(path, x=rows[0])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"no \.npz file of plain arrays"):
        load(path)
    np.savez(path, x=np.array([object()]))
    with pytest.raises(DataError, match=r"no \.npz file of plain arrays"):
        load(path)


# ---- .csv


def write_csv(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_takes_the_label_from_the_column_label_or_the_last(tmp_path):
    first = load(write_csv(tmp_path / "a.csv", "label,a,b,c\n1,1,2,3\n0,4,5,6\n0,7,8,9\n"))
    last = load(write_csv(tmp_path / "b.csv", "a,b,c,kind\n1,2,3,1\n4,5,6,0\n7,8,9,0\n"))
    for dataset in (first, last):
        inputs, labels = everything(dataset)
        assert_array_equal(inputs, [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
        assert labels.tolist() == [1, 0, 0]


def test_csv_with_names_chosen_columns_and_semicolons(tmp_path):
    text = '\ufeffid;species;c;a;b\r\n7;"iris; blue";3;1;2\r\n\r\n8;rose;6;4;5\r\n9;rose;9;7;8\r\n'
    path = write_csv(tmp_path / "a.csv", text)
    dataset = load(path, label="species", features=["a", "b", "c"], delimiter=";", scale=2.0, mean=1.0)
    inputs, labels = everything(dataset)
    assert dataset.classes == ("iris; blue", "rose")
    assert_array_equal(inputs, [[1, 3, 5], [7, 9, 11], [13, 15, 17]])
    assert labels.tolist() == [0, 1, 1]


def test_csv_without_labels(tmp_path):
    dataset = load(write_csv(tmp_path / "a.csv", "a,b,c\n1,2,3\n4,5,6\n7,8,9\n"), label="")
    assert everything(dataset)[1] is None


def test_csv_fills_a_shaped_input_in_row_major_order(tmp_path):
    spec = TensorSpec(name="grid", dtype=DType.FP32, shape=(2, 2))
    path = write_csv(tmp_path / "a.csv", "a,b,c,d,label\n1,2,3,4,0\n5,6,7,8,1\n9,9,9,9,1\n")
    assert everything(load(path, inputs=(spec,)))[0][0].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", {}, "there are no samples"),
        ("a,b,c,label\n", {}, "there are no samples"),
        ("a,b,c,label\n1,2,3,0\n1,2,x,0\n", {}, "line 3, column 'c': 'x' is no number"),
        ("a,b,c,label\n1,2,3,0\n\n1,,3,0\n", {}, "line 4, column 'b': '' is no number"),
        ("a,b,c,label\n1,2,3,0\n1,nan,3,0\n", {}, "line 3 holds NaN"),
        ("a,b,c,label\n1,2,3,0\n1,2,3\n", {}, "line 3 has 3 columns, the header has 4"),
        ("a,b,c,label\n1,2,3,0\n", {"label": "lable"}, "no column 'lable'.*did you mean 'label'"),
        ("a,b,c,label\n1,2,3,0\n", {"features": ["a", "b", "d"]}, "no column 'd'"),
        ("a,b,b,label\n1,2,3,0\n", {}, "names 'b' twice"),
        ("a,b,label\n1,2,0\n", {}, r"shape \[2\]"),
        ("a,b,c,label\n1,2,3,-2\n", {"classes": ["a"]}, "the label of line 2 is -2"),
        ("a,b,c,label\n1,2,3,cat\n", {"classes": ["dog"]}, "the label of line 2 is 'cat', which is no class"),
        ('a,b,c,label\n1,2,3,"0\n', {}, "cannot be read"),
        ("a,b,c,label\n1,2,3,0\n", {"delimiter": "::"}, "cannot be read"),
    ],
)
def test_csv_that_makes_no_sense(tmp_path, text, arguments, message):
    path = write_csv(tmp_path / "mine.csv", text)
    with pytest.raises(DataError, match=message) as caught:
        load(path, **arguments)
    assert caught.value.where == str(path)


def test_csv_that_is_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes("größe,label\n1,0\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "a.csv")


# ---- module:function

MODULE = """
import numpy as np
def pairs(count=10):
    return np.ones((count, 3)), np.arange(count) % 2
def named():
    return {"features": np.ones((6, 3), np.float32)}, ["a", "b"] * 3, ["b", "a"]
def unlabelled():
    return np.ones((6, 3)), None
def wrong():
    return np.ones((6, 3))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "own_data"
    sys.modules.pop("own_data", None)


def test_a_function_gives_inputs_and_labels(module):
    dataset = load(f"{module}:pairs", count=12)
    inputs, labels = everything(dataset)
    assert inputs.shape == (12, 3)
    assert labels.tolist() == [0, 1] * 6
    named = load(f"{module}:named")
    assert named.classes == ("b", "a")
    assert everything(named)[1].tolist() == [1, 0] * 3
    assert load(f"{module}:unlabelled").split("test").labels is None
    assert len(load(f"{module}:pairs", split="test").split("test")) == 10


def test_a_function_that_is_wrong(module):
    with pytest.raises(DataError, match=r"returned ndarray, not .inputs, labels."):
        load(f"{module}:wrong")
    with pytest.raises(RecipeError, match=r"unknown argument 'cuont'.*did you mean 'count'"):
        load(f"{module}:pairs", cuont=3)
    with pytest.raises(RecipeError, match=r"has no 'pair'"):
        load(f"{module}:pair")
    with pytest.raises(DataError, match=r"nothing for the input 'image'.*features"):
        load(f"{module}:named", inputs=(IMAGE,))


# ---- where it is


def test_a_relative_path_is_looked_for_in_the_data_folder(tmp_path, rows):
    np.savez(tmp_path / "mine.npz", x=rows[0], y=rows[1])
    assert len(load("mine.npz", data_dir=tmp_path).split("test")) == 4


def test_a_source_that_is_not_there():
    with pytest.raises(DataError, match=r"no data set and no folder 'digit'.*did you mean 'digits'"):
        load("digit")
    with pytest.raises(DataError, match=r"there is no file 'nowhere.npz'"):
        load("nowhere.npz")


# ---- images


@pytest.fixture
def images(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="images need Pillow")
    generator = np.random.default_rng(0)
    for name, count in (("cat", 6), ("dog", 4)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (4, 5, 3), np.uint8)
            image.fromarray(pixels).save(tmp_path / "pets" / name / f"{number}.png")
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / ".hidden").mkdir()
    return tmp_path / "pets"


def test_a_folder_of_images(images):
    image = pytest.importorskip("PIL.Image")
    dataset = load(images, inputs=(IMAGE,), mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    inputs, labels = everything(dataset)
    assert dataset.classes == ("cat", "dog")
    assert labels.tolist() == [0] * 6 + [1] * 4
    original = np.asarray(image.open(images / "dog" / "0.png"))
    assert_allclose(inputs[6], original.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_images_are_resized_and_turned_grey(images):
    grey = TensorSpec(name="image", dtype=DType.FP32, shape=(1, 8, 6))
    samples = load(images, inputs=(grey,)).split("train")
    assert samples.inputs["image"].shape == (len(samples), 1, 8, 6)
    assert 0 <= samples.inputs["image"].min() < samples.inputs["image"].max() <= 1


def test_folders_that_make_no_sense(images, tmp_path):
    with pytest.raises(DataError, match="images fill one input"):
        load(images)
    (images / "cat" / "torn.png").write_bytes((images / "cat" / "0.png").read_bytes()[:40])
    with pytest.raises(DataError, match="no readable image") as caught:
        load(images, inputs=(IMAGE,))
    assert caught.value.where.endswith("torn.png")
    (images / "bird").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load(images, inputs=(IMAGE,))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no sub-folder"):
        load(tmp_path / "empty", inputs=(IMAGE,))


def test_images_without_pillow_name_the_extra(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "repo_builder.datasets.folder", raising=False)
    with pytest.raises(MissingDependency, match=r"repo-builder\[images\]"):
        load(images, inputs=(IMAGE,))
