"""Data that is damaged, or made to harm: one sentence that names the file, and nothing of its size allocated."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repo_builder import datasets
from repo_builder.core import archive, environment
from repo_builder.core.errors import DataError
from repo_builder.core.recipe import DataSpec
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.datasets.labels import MOST_CLASSES

ROW = TensorSpec(name="features", dtype=DType.FP32, shape=(3,))
X = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)


def load(path, inputs=(ROW,), **arguments):
    return datasets.load(DataSpec(source=str(path), arguments=arguments), inputs=inputs, seed=0)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(shape, descr="'<f4'", *, version=b"\1\0"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text


def packed(how=zipfile.ZIP_DEFLATED, **members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as out:
        for name, data in members.items():
            out.writestr(f"{name}.npy", data)
    return bytearray(stream.getvalue())


def patched(data, offset, value):
    """Change a byte of the central directory's first entry."""
    data[data.find(b"PK\1\2") + offset] = value
    return data


def scratched(data):
    data[200:260] = b"\xff" * 60
    return data


DAMAGED = {
    "bad deflate": lambda: scratched(packed(x=npy(X))),
    "bad bzip2": lambda: scratched(packed(zipfile.ZIP_BZIP2, x=npy(X))),
    "bad lzma": lambda: scratched(packed(zipfile.ZIP_LZMA, x=npy(X))),
    "bad checksum": lambda: scratched(packed(zipfile.ZIP_STORED, x=npy(X))),
    "encrypted": lambda: patched(packed(zipfile.ZIP_STORED, x=npy(X)), 8, 1),
    "zip version": lambda: patched(packed(zipfile.ZIP_STORED, x=npy(X)), 6, 92),
    "compression": lambda: patched(packed(zipfile.ZIP_STORED, x=npy(X)), 10, 99),
    "cut": lambda: packed(zipfile.ZIP_STORED, x=npy(X))[:500],
    "rows that are not there": lambda: packed(x=header("(1000000000000, 3)")),
    "rows of nothing": lambda: packed(x=header("(1000000000000, 0)")),
    "more rows than memory": lambda: packed(x=header("(4611686018427387904, 4611686018427387904)")),
    "negative rows": lambda: packed(x=header("(-1, 3)")),
    "deep header": lambda: packed(x=header("(" * 3000 + ")" * 3000)),
    "no header": lambda: packed(x=b"[1, 2, 3]"),
    "other version": lambda: packed(x=header("(3,)", version=b"\7\0")),
    "huge item": lambda: packed(x=header("(60,)", "'|V2147483647'")),
    "Python objects": lambda: packed(x=npy(np.array([{}] * 3, object))),
    "structures": lambda: packed(x=npy(np.zeros(60, [("a", "f4"), ("b", "i4")]))),
    "text": lambda: packed(x=npy(np.array([["a"] * 3] * 60))),
    "classes of no dimension": lambda: packed(x=npy(X), y=npy(np.arange(60) % 3), classes=npy(np.array("a"))),
    "classes of two dimensions": lambda: packed(x=npy(X), y=npy(np.arange(60) % 3), classes=npy(np.array([["a"]]))),
    "values behind the array": lambda: packed(x=npy(X) + b"more"),
    "nothing": lambda: b"",
    "no archive": lambda: b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_npz_is_one_sentence(tmp_path, kind):
    path = tmp_path / "mine.npz"
    path.write_bytes(bytes(DAMAGED[kind]()))
    tracemalloc.start()
    with pytest.raises(DataError, match=r".") as caught:
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)
    assert peak < 50e6


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_happens_to_an_npz_it_loads_or_is_refused(tmp_path_factory, data):
    stored = packed(data.draw(st.sampled_from([0, 8, 12, 14])), x=npy(X), y=npy(np.arange(60) % 3))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "mine.npz"
    path.write_bytes(bytes(stored[: data.draw(st.integers(len(stored) - 40, len(stored)))]))
    try:
        dataset = load(path)
    except DataError:
        return
    assert dataset.split("test").inputs["features"].shape[1:] == (3,)


def test_arrays_that_are_not_used_are_not_read(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x=X, y=np.arange(60) % 3)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as out,
        out.open("unused.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(header("(100000000,)", "'|u1'"))
        for _ in range(100):
            stream.write(bytes(1_000_000))
    tracemalloc.start()
    assert load(path).classes == ("0", "1", "2")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_what_does_not_fit_into_memory_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "mine.npz", x=np.zeros((100_000, 3), np.float32))
    monkeypatch.setattr(environment, "memory_free_bytes", lambda: 1_000_000)
    with pytest.raises(DataError, match=r"the array 'x' takes 0.0012 GB, 0.001 GB of memory are free"):
        load(tmp_path / "mine.npz")
    with pytest.raises(DataError, match="takes"):
        archive.require_memory(1_000_001, "it", where="here")


# ---- labels


@pytest.mark.parametrize(
    "labels",
    [
        250_000 + 1000 * np.arange(60),
        1_700_000_000 + np.arange(60),
        np.arange(60) * 1e10,
        np.full(60, 1e300),
        np.full(60, 2**64 - 1, np.uint64),
        np.arange(60) - 30,
        np.full(60, MOST_CLASSES),
    ],
)
def test_whole_numbers_that_are_no_class_numbers_are_targets(tmp_path, labels):
    np.savez(tmp_path / "mine.npz", x=X, y=labels)
    dataset = load(tmp_path / "mine.npz")
    assert dataset.classes == ()
    np.testing.assert_array_equal(np.sort(np.concatenate([dataset.split(p).labels for p in dataset.parts])), labels)
    with pytest.raises(DataError, match=r"the label of sample \d+ is .*, which is no class number.*measure.task"):
        dataset.require_class_numbers()


def test_class_numbers_are_recognised_up_to_their_bound(tmp_path):
    np.savez(tmp_path / "mine.npz", x=X, y=np.append(np.arange(59), MOST_CLASSES - 1))
    dataset = load(tmp_path / "mine.npz")
    assert len(dataset.classes) == MOST_CLASSES
    dataset.require_class_numbers()


@pytest.mark.parametrize(
    "name", ["big\ndog", "a\rb", "a\tb", "\0", "\x1b[31mred", "a\u2028b", "\x85", " ", "", "\udcff", "\u202egnp.exe"]
)
def test_a_label_is_one_line_of_printable_text(tmp_path, name):
    np.savez(tmp_path / "mine.npz", x=X, y=np.arange(60) % 2)
    with pytest.raises(DataError, match="the name of class 1 is") as caught:
        load(tmp_path / "mine.npz", classes=["cat", name])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["[/x]", "<b>", "a b", "Ünïcode 猫", "it's", "a,b;c", "%s", "-1"])
def test_markup_and_any_script_may_stand_in_a_label(tmp_path, name):
    np.savez(tmp_path / "mine.npz", x=X, y=np.arange(60) % 2)
    assert load(tmp_path / "mine.npz", classes=["cat", name]).classes == ("cat", name)


def test_names_tell_classes_apart(tmp_path):
    np.savez(tmp_path / "mine.npz", x=X, y=np.arange(60) % 2)
    with pytest.raises(DataError, match="the name of class 1 is 'a', as that of class 0 is"):
        load(tmp_path / "mine.npz", classes=["a", "a"])


def test_a_label_of_two_lines_in_a_table_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,b,c,label\n" + '1,2,3,cat\n1,2,3,"big\ndog"\n' * 20)
    with pytest.raises(DataError, match=r"the name of class 0 is 'big\\ndog'"):
        load(path)


# ---- tables, functions, images


@pytest.mark.parametrize(
    "text", [b"a,b,c,label\n1,2,3,\0\n", b"\xff\xfe", b'"' * 99, b"a,b,c,label\n" + b"9" * 200_000]
)
def test_a_damaged_table_is_one_sentence(tmp_path, text):
    (tmp_path / "mine.csv").write_bytes(text)
    with pytest.raises(DataError, match=r"cannot be read|there are no samples|is no number|columns|is empty|is '"):
        load(tmp_path / "mine.csv")


def test_what_a_function_raises_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken_reader.py").write_text("def read():\n    return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="raised ZeroDivisionError: division by zero"):
        load("broken_reader:read")


@pytest.mark.parametrize("damage", ["cut", "bomb", "noise", "folder"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, monkeypatch, damage):
    image_module = pytest.importorskip("PIL.Image")
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / "one.png"
    if damage == "folder":
        path.mkdir()
    else:
        image_module.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
        data = bytearray(path.read_bytes())
        if damage == "bomb":
            monkeypatch.setattr(image_module, "MAX_IMAGE_PIXELS", 1500)
        path.write_bytes(data[:60] if damage == "cut" else b"\x89PNG" + bytes(99) if damage == "noise" else data)
    spec = TensorSpec(name="image", dtype=DType.FP32, shape=(3, 4, 5))
    with pytest.raises(DataError, match="is no readable image") as caught:
        load(tmp_path, inputs=(spec,))
    assert caught.value.where == str(path)
