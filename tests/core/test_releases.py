"""The table of Triton's releases: whole, in order, each row with its source; what their ONNX Runtime reads."""

from __future__ import annotations

import itertools
import re
import sys
from typing import Any

import pytest

from repo_builder.core import assets, releases
from repo_builder.core.errors import ServeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE: dict[str, Any] = tomllib.loads((assets.deploy_folder() / "triton_releases.toml").read_text(encoding="utf-8"))
ROWS: list[dict[str, Any]] = TABLE["release"]
FIELDS = ("name", "triton", "python", "tensorrt", "cuda", "driver", "onnxruntime", "sources")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_every_row_has_every_field_and_a_source(row: dict[str, Any]) -> None:
    assert tuple(row) == FIELDS
    assert re.fullmatch(r"2\d\.(0[1-9]|1[0-2])", row["name"])
    for field in ("triton", "tensorrt", "cuda", "onnxruntime"):
        assert re.fullmatch(r"(\d+\.\d+\.\d+)?", row[field]), field
    assert re.fullmatch(r"(\d{3})?", row["driver"])
    assert re.fullmatch(r"(3\.\d+)?", row["python"])
    assert row["triton"] or row is ROWS[-1], "only of the very newest may the server's version not be known yet"
    assert any((row["tensorrt"], row["cuda"], row["onnxruntime"])), "a row that tells nothing"
    assert row["sources"]
    assert all("." in source for source in row["sources"])


def test_rows_are_in_order_and_reach_the_newest_release() -> None:
    names = [row["name"] for row in ROWS]
    assert names == sorted(set(names))
    assert names[-1] == "26.10"
    assert [item.name for item in releases.releases()] == names
    months = {name for name in names if name >= "24.04"}
    assert months >= {
        f"{year}.{month:02}" for year in (25, 26) for month in range(1, 13) if f"{year}.{month:02}" <= "26.08"
    }


@pytest.mark.parametrize("field", ["triton", "python", "tensorrt", "cuda", "driver", "onnxruntime"])
def test_newer_releases_hold_nothing_older(field: str) -> None:
    known = [releases.numbers(row[field]) for row in ROWS if row[field]]
    assert known == sorted(known)


def test_newer_versions_of_onnx_runtime_read_no_less() -> None:
    known = sorted(TABLE["onnxruntime"], key=lambda item: releases.numbers(item["onnxruntime"]))
    assert known == TABLE["onnxruntime"]
    for older, newer in itertools.pairwise(known):
        assert older["opset"] <= newer["opset"]
        assert older["ir_version"] <= newer["ir_version"]


@pytest.mark.parametrize(
    ("name", "opset", "ir_version"), [("24.10", 21, 10), ("25.01", 21, 10), ("25.08", 23, 11), ("26.10", 26, 13)]
)
def test_a_release_reads_what_its_onnx_runtime_reads(name: str, opset: int, ir_version: int) -> None:
    found = releases.reads(releases.release(name))
    assert found is not None
    assert (found.opset, found.ir_version) == (opset, ir_version)


def test_of_a_release_before_all_that_are_known_nothing_is_promised() -> None:
    assert releases.reads(releases.release("22.11")) is None
    with pytest.raises(ServeError, match=r"no Triton release '26\.11' is known → did you mean '26\.10'"):
        releases.release("26.11")
