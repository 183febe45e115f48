"""Damaged data, weights and measurements; see ``inputs``."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import subjects
from inputs import Case, build, command, reader
from subjects import CLASSES, FEATURES, RECIPE, SAMPLES, Subject

RECORDED = Path(__file__).resolve().parents[1] / "goldens" / "perf" / "run.json"
_ARRAYS: tuple[Callable[[], Any], ...] = (
    lambda: np.array([]),
    lambda: np.array(5),
    lambda: np.zeros((SAMPLES, FEATURES), complex),
    lambda: np.array(["a"] * SAMPLES),
    lambda: np.array(["a\nb", "[/x]"] * (SAMPLES // 2)),
    lambda: np.zeros((SAMPLES, FEATURES), "M8[s]"),
    lambda: np.full((SAMPLES, FEATURES), np.nan),
    lambda: np.zeros((0, FEATURES)),
    lambda: np.zeros((SAMPLES, 0)),
    lambda: np.arange(SAMPLES) * 1e10,
    lambda: np.arange(SAMPLES) - 3,
    lambda: np.zeros((1,) * 32),
    lambda: np.array([1e300] * SAMPLES),
    lambda: np.zeros((SAMPLES, FEATURES), [("a", "f4"), ("b", "i4")]),
    lambda: np.array([True] * SAMPLES),
    lambda: np.zeros((SAMPLES, FEATURES), "f2") + 6e4,
    lambda: np.array([2**64 - 1] * SAMPLES, "u8"),
    lambda: np.array([np.nan] * SAMPLES),
)
_NPZ_ARGUMENTS = (
    "layout='hwc'", "std=0", "std=nan", "std=[1,2]", "std='x'", "std=[[1]]", "scale=nan", "scale=1e39", "scale=[1]",
    "scale=true", "classes=[]", "classes=['a']", "classes=3", "classes={}", "split='test'", "split=3",
)  # fmt: skip


def npz(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """An .npz as data."""
    (folder / "data.npz").write_bytes(_npz(rnd))
    more = ["--set", f"data.arguments.{rnd.choice(_NPZ_ARGUMENTS)}"] if rnd.random() < 0.5 else []
    return command(build(folder, subject.copy_into(folder), *more), folder / "data.npz")


def _npz(rnd: random.Random) -> bytes:
    stream = io.BytesIO()
    arrays = {"x": subjects.values(SAMPLES, FEATURES, seed=1), "y": np.arange(SAMPLES) % CLASSES}
    if rnd.random() < 0.5:
        rnd.choice([np.savez, np.savez_compressed])(stream, **arrays)
        return mutations.bytes_of(stream.getvalue(), rnd)
    if rnd.random() < 0.6:
        arrays[rnd.choice(["x", "y", "classes", "labels"])] = rnd.choice(_ARRAYS)()
        np.savez(stream, **arrays)
        return stream.getvalue()
    huge = ["(1000000000000, 16)", "(-1, 16)", f"({2**63 - 1}, {2**63 - 1})", "(" * 500 + ")" * 500, "(200000000, 16)"]
    kind = rnd.choice(["<f4", "|O", "<V2147483647", "|S99999999999"])
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {rnd.choice(huge)}, }}\n".encode()
    how = rnd.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(stream, "w", how) as archive:
        name = rnd.choice(["x.npy", "y.npy", "../../evil.npy", "extra.npy"])
        archive.writestr(name, b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + bytes(100))
    return stream.getvalue()


_CELLS = (
    "", "nan", "inf", "1e999", "abc", '"', '"a\nb"', "1,2", "0x10", "1_000", "٣", "9" * 20, "-1", "-0", "\0", "é",
    "TRUE", " 5 ", "5.0000000001", "\ufeff1", "9" * 400, "[/x]",
)  # fmt: skip
_COLUMNS: tuple[Callable[[int], str], ...] = (
    lambda row: str(1.7e9 + row),
    lambda row: str(row * 10**5),
    lambda row: "x" * row,
    lambda row: "",
    lambda row: "nan",
    lambda row: str(-row),
    lambda row: "1e300",
)
_CSV_ARGUMENTS = (
    "label=''", "label='f3'", "label='nope'", "label=3", "label=[]", "delimiter=''", "delimiter=';'", "delimiter='ab'",
    "delimiter=3", "features=[]", "features=['f1']", "features='f1'", "features=[1]", "classes=['a']", "classes='ab'",
)  # fmt: skip


def csv(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """A .csv as data."""
    rows = [[f"f{column}" for column in range(FEATURES)] + ["label"]]
    for number, row in enumerate(subjects.values(40, FEATURES, seed=1)):
        rows.append([f"{value:.4f}" for value in row] + [str(number % CLASSES)])
    if rnd.random() < 0.2:
        column = rnd.choice(_COLUMNS)
        for number, cells in enumerate(rows[1:]):
            cells[-1] = column(number)
    for _ in range(rnd.choice([1, 1, 2, 5])):
        rnd.choice(rows)[rnd.randrange(FEATURES + 1)] = rnd.choice(_CELLS)
    data = "\n".join(",".join(cells) for cells in rows).encode()
    path = folder / "d.csv"
    path.write_bytes(mutations.bytes_of(data, rnd) if rnd.random() < 0.35 else data)
    more = ["--set", f"data.arguments.{rnd.choice(_CSV_ARGUMENTS)}"] if rnd.random() < 0.4 else []
    return command(build(folder, subject.copy_into(folder), "--set", f"data.source={path}", *more), path)


def checkpoint(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """A .pt or .safetensors file as weights."""
    (folder / "net.py").write_text("from torch import nn\ndef make(): return nn.Sequential(nn.Linear(16, 5))\n")
    path = folder / rnd.choice(["c.pt", "c.safetensors"])
    path.write_bytes(_safetensors(rnd) if path.suffix == ".safetensors" else _pickled(rnd))
    text = RECIPE.replace('source = "m.onnx"', f'source = "net:make"\ncheckpoint = "{path}"').replace('"*"', '"Linear"')
    (folder / "r.toml").write_text(text)
    return command(build(folder, subject.copy_into(folder)), path)


def _state() -> dict[Any, Any]:
    import torch

    return {"0.weight": torch.zeros(CLASSES, FEATURES) + 0.1, "0.bias": torch.zeros(CLASSES)}


def _safetensors(rnd: random.Random) -> bytes:
    import safetensors.torch

    stored = safetensors.torch.save(_state())
    if rnd.random() < 0.5:
        return mutations.bytes_of(stored, rnd)
    size = struct.unpack("<Q", stored[:8])[0]
    head = mutations.json_of(json.loads(stored[8 : 8 + size]), rnd)
    claimed = rnd.choice([len(head), len(head), 2**62, 0, len(head) + 10**6])
    return struct.pack("<Q", claimed) + head + stored[8 + size :]


def _pickled(rnd: random.Random) -> bytes:
    import torch

    value: Any = _state()
    if odd := rnd.random() < 0.5:
        value = rnd.choice([{}, [], 5, None, {"state_dict": {}}, {1: torch.zeros(2)}, *([value] * 10)])
        if value:
            change = rnd.choice(_TENSORS)
            value = {name: change(item) for name, item in _state().items()}
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue() if odd else mutations.bytes_of(stream.getvalue(), rnd)


# What a tensor of a checkpoint may have become.
_TENSORS: tuple[Callable[[Any], Any], ...] = (
    lambda item: item.double(),
    lambda item: item.half(),
    lambda item: item.int(),
    lambda item: item.cfloat(),
    lambda item: item * float("nan"),
    lambda item: item.double() + 1e300,
    lambda item: item.to("meta"),
    lambda item: item.to_sparse(),
    lambda item: item.reshape(-1)[:1],
    lambda item: item[:1].expand(10**9, *item.shape[1:]),
)


_TIMES = ("", "nan", "inf", "1e308", "-1e308", "1e400", "-1", "abc", "9" * 5000, "#", ",", "٣", "1_0", "1e18", "\0")


def trace(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """A trace of arrival times."""
    from repo_builder.measure.load import schedule

    lines = ["time,x", *(f"{number * 0.01:.3f},a" for number in range(50))]
    for _ in range(rnd.choice([1, 2, 5])):
        lines[rnd.randrange(len(lines))] = rnd.choice(_TIMES)
    data = "\n".join(lines).encode()
    path = folder / "t.csv"
    path.write_bytes(mutations.bytes_of(data, rnd) if rnd.random() < 0.4 else data)
    return reader(lambda: schedule.read_trace(path), "read_trace", path)


def baseline(subject: Subject, folder: Path, rnd: random.Random) -> Case:
    """An earlier run's JSON, compared with and shown."""
    from rich.console import Console

    from repo_builder.measure.judge import baseline as judge
    from repo_builder.report import page, terminal
    from repo_builder.results import schema

    path = folder / "b.json"
    recorded = RECORDED
    path.write_bytes(mutations.json_of(json.loads(recorded.read_text()), rnd))

    def show() -> None:
        before, after = schema.read(path), schema.read(recorded)
        judge.compare(before, after, accuracy_tolerance=0.01, latency_tolerance=0.1)
        schema.dumps(before)
        page.render(before)
        terminal.show(before, Console(file=io.StringIO()))

    return reader(show, "baseline", path)
