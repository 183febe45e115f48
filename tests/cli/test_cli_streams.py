"""What the operating system refuses: closed and full streams, folders that are gone, names that are too long."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from repo_builder import cli
from repo_builder.cli import streams

START = "import sys; from repo_builder.cli import main; sys.argv[0] = 'repo-builder'; main()"


def shell(script: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which "$@" is repo-builder with its arguments."""
    command = ["bash", "-c", script, "bash", sys.executable, "-c", START, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('"$@" >&-', "standard output: is closed"),
        ('"$@" >/dev/full', "standard output cannot be written (No space left on device)"),
    ],
)
@pytest.mark.parametrize("arguments", [("recipes",), ("--help",)])
def test_a_result_that_cannot_be_written_is_no_success(script: str, said: str, arguments: tuple[str, ...]) -> None:
    done = shell(script, *arguments)
    assert done.returncode == 12, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ['"$@" 2>&-', '"$@" 2>/dev/full', '"$@" <&-'])
def test_other_streams_are_no_condition(script: str) -> None:
    done = shell(script, "recipes")
    assert done.returncode == 0
    assert "jsc" in done.stdout
    assert shell(script, "build", "no-such-recipe").returncode == 3


def test_no_file_takes_the_number_of_a_closed_stream() -> None:
    code = "import os, sys; from repo_builder.cli import streams; streams.prepare(); print(os.open(os.devnull, 0))"
    done = subprocess.run(
        ["bash", "-c", '"$@" <&- 2>&-', "bash", sys.executable, "-c", code], capture_output=True, text=True
    )
    assert int(done.stdout) > 2


def test_a_stream_that_cannot_show_a_name_shows_an_escape() -> None:
    done = shell('PYTHONIOENCODING=latin-1 "$@"', "build", "猫.toml")
    assert done.returncode == 3
    assert r"no file '\u732b.toml' \u2192 there are" in done.stderr


def test_a_current_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_bytes(shell('"$@"', "recipes", "show", "jsc-tiny").stdout.encode())
    done = shell('mkdir gone && cd gone && rmdir ../gone && "$@"', "build", str(recipe), cwd=tmp_path)
    assert done.returncode == 12, done.stderr
    assert "the current folder is gone" in done.stderr


@pytest.mark.parametrize("option", ["--output", "--work", "--checkpoint", "--data-dir", "--set"])
def test_a_name_that_is_too_long_is_shortened_and_refused(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    value = "x" * 600
    arguments = [option, f"data.source={value}.npz" if option == "--set" else value]
    if option == "--data-dir":
        arguments += ["--set", "data.source=missing.npz"]
    assert cli.run(["build", "jsc-tiny", *arguments]) == 12
    said = capsys.readouterr().err.splitlines()[-1]
    assert "File name too long" in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: cannot be used (Permission denied)"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", b"/\xff"), "/\udcff: cannot be used"),
        (OSError(errno.ENOSPC, "No space left on device"), "a file or standard output cannot be written"),
    ],
)
def test_what_is_about_files_is_one_sentence(error: OSError, said: str) -> None:
    assert str(streams.refusal(error)).startswith(said)


@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError(), OSError("odd")])
def test_what_is_about_something_else_is_not(error: OSError) -> None:
    assert streams.refusal(error) is None
