"""The command line as a whole: help, errors, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder import __version__, cli
from repo_builder.core.errors import RecipeError


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in cli.VERBS)


def test_a_misspelt_verb_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["biuld"]) == 2
    assert "did you mean 'build'" in capsys.readouterr().err


def test_an_error_is_one_sentence_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["build", "vg"]) == RecipeError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: there is no built-in recipe and no file 'vg' → did you mean 'vgg'")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", [["--debug", "build", "vg"], ["build", "vg", "--debug"]])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == RecipeError.exit_code
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "error: there is no built-in recipe" in said.splitlines()[-1]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A verb with a bug, and where its traceback is kept."""

    def fail(**_: object) -> None:
        raise RuntimeError("nobody\nforesaw this")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("repo_builder.cli.recipes.command.callback", fail)
    return tmp_path / "repo-builder" / "bugs"


def test_a_bug_is_one_line_and_an_exit_code_of_its_own(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "--json"]) == 70
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "RuntimeError: nobody foresaw this" in captured.err
    (kept,) = broken.iterdir()
    assert str(kept) in captured.err
    text = kept.read_text()
    assert "Traceback (most recent call last)" in text
    assert "['recipes', '--json']" in text
    assert __version__ in text


def test_a_few_tracebacks_are_kept_and_none_where_nothing_can_be_written(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(25):
        assert cli.run(["recipes"]) == 70
    assert len(list(broken.iterdir())) == 20
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: (_ for _ in ()).throw(OSError("full")))
    capsys.readouterr()
    assert cli.run(["recipes"]) == 70
    assert "--debug" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_there(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_REPO_BUILDER_COMPLETE", f"{shell}_source")
    if shell == "bash":
        monkeypatch.setattr("click.shell_completion.BashComplete._check_version", lambda _: None)
    with pytest.raises(SystemExit):
        cli.main()
    assert "_REPO_BUILDER_COMPLETE" in capsys.readouterr().out
