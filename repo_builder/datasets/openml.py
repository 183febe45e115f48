"""``jets-openml``: the public jet set, OpenML 42468 "hls4ml_lhc_jets_hlf": 830,000 jets, 16 features, 5 classes.

Downloaded once as ARFF, or taken from ``--data-dir``. Features and classes are brought to the order of ``jets``, so
that one network serves both.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from repo_builder.core import assets
from repo_builder.core.errors import DataError, did_you_mean
from repo_builder.core.foreign import parsed
from repo_builder.core.tensors import Array, TensorSpec
from repo_builder.datasets import download, jets
from repo_builder.datasets.source import Source

DATA_SET = 42468
DESCRIPTION = f"https://www.openml.org/api/v1/json/data/{DATA_SET}"
_LABEL = "class"
_ATTRIBUTE = re.compile(r"@attribute\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+))", re.IGNORECASE)
_ADVICE = f"download the ARFF file of https://www.openml.org/d/{DATA_SET} elsewhere and name its folder with --data-dir"


def read(*, inputs: tuple[TensorSpec, ...], data_dir: Path | None = None) -> Source:
    """Return the jets with their raw features.

    Args:
        inputs: The model's one input (16,).
        data_dir: Folder that holds the one .arff file; None downloads.

    Raises:
        DataError: The download fails or the file is not understood.
    """
    if len(inputs) != 1:
        raise DataError(f"the jets fill one input; the model has {len(inputs)}", where="data.source")
    with np.load(assets.packaged("data", jets.FILE), allow_pickle=False) as stored:
        features, classes = (tuple(stored[name].tolist()) for name in ("feature_names", "classes"))
    path = _cached() if data_dir is None else _only_arff(data_dir)
    values, labels = read_arff(path, features, classes)
    return Source(
        origin=str(path),
        inputs={inputs[0].name: values},
        labels=labels,
        classes=classes,
        place="row {} of the data".format,
    )


def read_arff(path: Path, features: tuple[str, ...], classes: tuple[str, ...]) -> tuple[Array, Array]:
    """Return the named features fp32 (n, features) and the class numbers int64 (n,) of a dense ARFF file.

    Raises:
        DataError: An attribute is missing, a value is no number (``?`` among them), or a class is unknown.
    """
    names, header = _attributes(path)
    for name in (*features, _LABEL):
        if name not in names:
            raise DataError(f"has no attribute '{name}'", where=str(path), hint=did_you_mean(name, names))
    try:
        values = np.loadtxt(
            path,
            np.float32,
            comments="%",
            delimiter=",",
            skiprows=header,
            usecols=[names.index(name) for name in features],
            ndmin=2,
        )
        words = np.loadtxt(
            path, "U32", comments="%", delimiter=",", skiprows=header, usecols=names.index(_LABEL), ndmin=1
        )
    except ValueError as error:
        raise DataError(f"cannot be understood ({error})", where=str(path)) from None
    words = np.char.strip(words, "'\" ")
    labels = np.full(len(words), -1, np.int64)
    for number, name in enumerate(classes):
        labels[words == name] = number
    if (labels < 0).any():
        bad = int(np.argmax(labels < 0))
        raise DataError(f"the class of row {bad} of the data is '{words[bad]}'", where=str(path))
    return values, labels


def _attributes(path: Path) -> tuple[list[str], int]:
    """Return the attributes' names and the number of lines up to ``@data``."""
    names = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if found := _ATTRIBUTE.match(line.strip()):
                names.append(next(name for name in found.groups() if name is not None))
            elif line.strip().lower() == "@data":
                return names, number
    raise DataError("is no ARFF file: it has no @data line", where=str(path))


def _only_arff(folder: Path) -> Path:
    found = sorted(folder.glob("*.arff"))
    if len(found) != 1:
        raise DataError(f"holds {len(found)} .arff files, not one", where=str(folder), hint=_ADVICE)
    return found[0]


def _cached() -> Path:
    """Return the downloaded file. The digest comes from OpenML too: it finds damage, not deceit."""
    path = download.cache_folder() / f"openml-{DATA_SET}.arff"
    if not path.is_file():
        try:
            entry = parsed(json.loads, download.text(DESCRIPTION, _ADVICE))["data_set_description"]
            url, digest = str(entry["url"]), str(entry["md5_checksum"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"is not OpenML's description ({error!r})", where=DESCRIPTION, hint=_ADVICE) from None
        download.fetch(url.replace("http://", "https://", 1), path, digest=f"md5:{digest}", advice=_ADVICE)
    return path
