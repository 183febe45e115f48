"""``cifar10``: 60,000 colour images of 32×32 pixels in 10 classes (Krizhevsky, 2009), in its binary layout.

A record is one byte of label and 3,072 bytes of pixels: channel, row, column. The files are downloaded once, or taken
from ``--data-dir``, where they may hold any number of records.
"""

from __future__ import annotations

import tarfile
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np

from repo_builder.core import files
from repo_builder.core.errors import DataError
from repo_builder.core.tensors import Array, TensorSpec
from repo_builder.datasets import download
from repo_builder.datasets.preprocessing import normalise
from repo_builder.datasets.source import Source

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_FOLDER = "cifar-10-batches-bin"
_NAMES = "batches.meta.txt"
_TEST = "test_batch.bin"
_TRAINING = "data_batch_*.bin"
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
# Of the 50,000 training images, by channel, scaled to [0, 1].
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)
_ADVICE = f"unpack {URL} on a machine with network and name the folder with --data-dir"


def read(*, inputs: tuple[TensorSpec, ...], data_dir: Path | None = None) -> Source:
    """Return the images, test set last, normalised by channel with the mean and deviation of the training images.

    Args:
        inputs: The model's one image input (3, 32, 32).
        data_dir: Folder with the .bin files and batches.meta.txt, or one that holds it; None downloads.

    Raises:
        DataError: A file is missing, cut short or has a label out of range, or the download fails.
    """
    if len(inputs) != 1:
        raise DataError(f"CIFAR-10 fills one input; the model has {len(inputs)}", where="data.source")
    folder = _cached() if data_dir is None else data_dir
    if (folder / _FOLDER).is_dir():
        folder = folder / _FOLDER
    for needed in (_NAMES, _TEST):
        if not (folder / needed).is_file():
            raise DataError(f"there is no {needed}", where=str(folder), hint=_ADVICE)
    classes = tuple(line.strip() for line in (folder / _NAMES).read_text().splitlines() if line.strip())
    paths = [*sorted(folder.glob(_TRAINING)), folder / _TEST]
    if len(paths) == 1:
        raise DataError(f"there is no {_TRAINING}", where=str(folder), hint=_ADVICE)
    batches = [_records(path) for path in paths]
    starts = [0, *accumulate(map(len, batches))]
    records = np.concatenate(batches)
    name = inputs[0].name

    def prepare(raw: dict[str, Array]) -> dict[str, Array]:
        return {name: normalise(raw[name], scale=1 / 255, mean=_MEAN, std=_STD)}

    def place(number: int) -> str:
        batch = bisect_right(starts, number) - 1
        return f"record {number - starts[batch]} of {paths[batch].name}"

    return Source(
        origin=str(folder),
        inputs={name: records[:, 1:].reshape(-1, *_SHAPE)},
        labels=records[:, 0].astype(np.int64),
        classes=classes,
        own_test=starts[-2],
        prepare=prepare,
        place=place,
    )


def _records(path: Path) -> Array:
    """Return a file's records uint8 (n, 3073)."""
    data = np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % _RECORD:
        raise DataError(
            f"has {data.size} bytes, which is no whole number of records of {_RECORD}", where=str(path), hint=_ADVICE
        )
    return data.reshape(-1, _RECORD)


def _cached() -> Path:
    """Return the unpacked download, made if need be."""
    folder = download.cache_folder() / "cifar10"
    if folder.is_dir():
        return folder
    archive = folder.with_suffix(".tar.gz")
    if not archive.is_file():
        download.fetch(URL, archive, digest=f"sha256:{SHA256}", advice=_ADVICE)
    unpack(archive, folder)
    archive.unlink()
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the data files of the archive into a folder, all or none.

    Files are written under their own last name only, so that no path in an archive leads out of the folder.

    Raises:
        DataError: The archive is damaged, or an entry is not a plain file in its one folder.
    """
    try:
        with tarfile.open(archive, "r:gz") as packed, files.replacing_folder(folder) as fresh:
            for member in packed:
                path = Path(member.name)
                if member.isdir() and path == Path(_FOLDER):
                    continue
                if not member.isfile() or path.parts != (_FOLDER, path.name) or path.name.startswith("."):
                    raise DataError(f"has an entry that does not belong there: '{member.name}'", where=str(archive))
                stream = packed.extractfile(member)
                if stream is not None:
                    (fresh / path.name).write_bytes(stream.read())
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"is damaged ({error})", where=str(archive), hint="remove it and try again") from error
