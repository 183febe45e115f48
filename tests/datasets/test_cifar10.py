import hashlib
import io
import tarfile

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from repo_builder import datasets
from repo_builder.core.errors import DataError
from repo_builder.core.recipe import DataSpec
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.datasets import cifar10

IMAGE = TensorSpec(name="image", dtype=DType.FP32, shape=(3, 32, 32))
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def contents(training=(30, 20), test=12):
    """Files of a small CIFAR-10, by name."""
    generator = np.random.default_rng(0)
    found = {"batches.meta.txt": ("\n".join(CLASSES) + "\n\n").encode()}
    for name, count in [
        *((f"data_batch_{n}.bin", c) for n, c in enumerate(training, start=1)),
        ("test_batch.bin", test),
    ]:
        records = generator.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        found[name] = records.tobytes()
    return found


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def load(data_dir=None):
    return datasets.load(DataSpec(source="cifar10", calibration=5), inputs=(IMAGE,), seed=0, data_dir=data_dir)


def packed(files, folder="cifar-10-batches-bin/"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(folder + name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("below", [".", "cifar-10-batches-bin"])
def test_the_binary_layout_of_any_length(tmp_path, below):
    files = contents()
    write(tmp_path / below, files)
    dataset = load(tmp_path)
    assert dataset.classes == tuple(CLASSES)
    assert {name: len(part) for name, part in dataset.parts.items()} == {
        "train": 40,
        "calibration": 5,
        "validation": 5,
        "test": 12,
    }
    test = dataset.split("test")
    raw = np.frombuffer(files["test_batch.bin"], np.uint8).reshape(12, 3073)
    assert_array_equal(test.labels, raw[:, 0])
    pixel = raw[3, 1 + 1024 + 32 * 2 + 7] / 255  # green, row 2, column 7
    assert_allclose(test.inputs["image"][3, 1, 2, 7], (pixel - 0.4822) / 0.2435, atol=1e-6)


def test_a_label_out_of_range_is_found_in_its_file(tmp_path):
    files = contents()
    broken = bytearray(files["data_batch_2.bin"])
    broken[3073 * 4] = 10
    write(tmp_path, files | {"data_batch_2.bin": bytes(broken)})
    with pytest.raises(DataError, match=r"the label of record 4 of data_batch_2\.bin is 10, not between 0 and 9"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_batch.bin": None}, r"there is no test_batch\.bin"),
        ({"batches.meta.txt": None}, r"there is no batches\.meta\.txt"),
        ({"data_batch_1.bin": None, "data_batch_2.bin": None}, r"there is no data_batch_\*\.bin"),
        ({"data_batch_1.bin": b"\0" * 5000}, "has 5000 bytes, which is no whole number of records of 3073"),
        ({"data_batch_1.bin": b""}, "has 0 bytes"),
    ],
)
def test_a_folder_that_makes_no_sense(tmp_path, change, message):
    files = {name: data for name, data in (contents() | change).items() if data is not None}
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, files))


def test_the_download_is_checked_unpacked_once_and_cleaned_up(tmp_path, monkeypatch, serve_url):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    archive = packed(contents() | {"readme.html": b"<html>"})
    asked = serve_url({cifar10.URL: archive})
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(archive).hexdigest())
    first = load()
    assert load().fingerprint == first.fingerprint
    assert asked == [cifar10.URL]
    assert [item.name for item in (tmp_path / "repo-builder").iterdir()] == ["cifar10"]


def test_another_archive_is_refused(tmp_path, monkeypatch, serve_url):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    serve_url({cifar10.URL: packed(contents())})
    with pytest.raises(DataError, match=f"sha256 [0-9a-f]{{64}}, not {cifar10.SHA256}"):
        load()
    assert list((tmp_path / "repo-builder").iterdir()) == []


@pytest.mark.parametrize("name", ["{}../evil.bin", "/{}evil.bin", "{}deeper/evil.bin", "{}..", "{}.hidden", "evil.bin"])
def test_no_entry_of_an_archive_leads_out_of_its_folder(tmp_path, name):
    (tmp_path / "a.tar.gz").write_bytes(packed({name.format("cifar-10-batches-bin/"): b"x"}, folder=""))
    with pytest.raises(DataError, match="does not belong there"):
        cifar10.unpack(tmp_path / "a.tar.gz", tmp_path / "cifar10")
    assert [item.name for item in tmp_path.rglob("*")] == ["a.tar.gz"]


def test_a_link_in_an_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(DataError, match="does not belong there"):
        cifar10.unpack(tmp_path / "a.tar.gz", tmp_path / "cifar10")


def test_a_damaged_archive(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(packed(contents())[:5000])
    with pytest.raises(DataError, match="is damaged"):
        cifar10.unpack(tmp_path / "a.tar.gz", tmp_path / "cifar10")
    assert not (tmp_path / "cifar10").exists()
