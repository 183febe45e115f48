"""The command line as a whole: help, errors, exit codes."""

from __future__ import annotations

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
def test_debug_shows_the_traceback(arguments: list[str]) -> None:
    with pytest.raises(RecipeError):
        cli.run(arguments)


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
