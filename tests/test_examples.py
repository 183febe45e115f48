"""Every example does what its README says: the commands marked ``run``, in order, around one server for all of them."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from repo_builder import cli, serve
from tests.conftest import dropped

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = sorted(item.name for item in EXAMPLES.iterdir() if re.match(r"\d\d_", item.name))
BLOCK = re.compile(r"^```bash run\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHORT = ["--duration", "0.3"]  # loads are measured until they are steady otherwise

pytestmark = [pytest.mark.server, pytest.mark.slow]


def lines(name: str) -> list[list[str]]:
    text = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    return [shlex.split(line) for block in BLOCK.findall(text) for line in block.splitlines()]


def split(name: str) -> tuple[list[list[str]], list[list[str]]]:
    """What an example does before it serves, and what it asks the server."""
    words = lines(name)
    start = next(place for place, line in enumerate(words) if line[1:2] == ["serve"])
    assert words[start] == ["repo-builder", "serve", "--detach"]
    assert words[-1] == ["repo-builder", "serve", "--stop"]
    return words[:start], words[start + 1 : -1]


def run(line: list[str], options: list[str]) -> None:
    program, *arguments = line
    if program == "repo-builder":
        assert cli.run([*arguments, *(options if arguments[0] == "perf" else [])]) == 0, line
    elif program == "python":
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run([*line, *options], env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, serve.Server]]:
    """A copy of the examples, all built into one repository, and the server of it."""
    folder, before, path = tmp_path_factory.mktemp("examples"), Path.cwd(), list(sys.path)
    repository = folder / "model_repository"
    repository.mkdir()
    try:
        for name in NAMES:
            shutil.copytree(EXAMPLES / name, folder / name)
            (folder / name / "model_repository").symlink_to(repository)
            os.chdir(folder / name)
            for line in split(name)[0]:
                run(line, [])
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        with dropped(serve.start(repository, runtime="embedded", log=folder / "triton.log", **ports)) as server:
            server.wait_ready(300)
            yield folder, server
    finally:
        os.chdir(before)
        sys.path[:] = path


@pytest.mark.parametrize("name", NAMES)
def test_an_example_does_what_it_says(
    name: str, served: tuple[Path, serve.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, server = served
    monkeypatch.chdir(folder / name)
    for line in split(name)[1]:
        run(line, ["--url", server.grpc_url, *SHORT])
    assert any(line[1:2] == ["perf"] or line[0].startswith("./") for line in split(name)[1])


def test_they_left_what_they_speak_of(served: tuple[Path, serve.Server]) -> None:
    folder, _ = served
    assert {item.name for item in (folder / "model_repository").iterdir() if item.is_dir()} >= {
        "jsc-tiny", "my-resnet", "sensor", "shapes", "tiny-transformer",
    }  # fmt: skip
    for kept in ("02_torch/my-resnet.html", "05_ci/baseline.json", "05_ci/current.json", "05_ci/report.html"):
        assert (folder / kept).is_file(), f"{kept} comes of running all tests of this file"
