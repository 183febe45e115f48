"""What ``--help`` prints: every option in a group, each word for one thing, nothing cut at any width."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest

from repo_builder import cli
from repo_builder.cli import help as helping


def commands() -> Iterator[tuple[str, click.Command]]:
    yield "", cli.group
    for verb in cli.VERBS:
        command = cli.group.get_command(click.Context(cli.group), verb)
        assert command is not None
        yield verb, command
        if isinstance(command, click.Group):
            yield from ((f"{verb} {name}", item) for name, item in command.commands.items())


COMMANDS = dict(commands())
# Where the default of an option stands; it may differ between verbs, what the option means may not.
DEFAULT = re.compile(r"\s*\[default: .*\]$")
# A server that is measured, or one that is used instead of a new one; a size, or those to choose from; several shapes
# to measure in turn, or those of one load.
OF_THE_VERB = {"--url", "--max-batch-size", "--shape"}


def printed(verb: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(width + 2))  # click leaves two free
    assert cli.run([*verb.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("verb", COMMANDS)
def test_nothing_is_cut_or_too_long(
    verb: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(verb, width, monkeypatch, capsys)
    assert not re.search(r"\w\.\.\.$|…", text, re.MULTILINE), "cut"
    assert all(len(line) <= width for line in text.splitlines() if "COMPLETE=" not in line)
    said = re.sub(r"\s|\\\n", "", text)
    for item in COMMANDS[verb].params:
        if isinstance(item, click.Option) and not item.hidden:
            assert item.help, f"{verb} says nothing of {item.opts}"
            assert re.sub(r"\s", "", item.help or "") in said


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_option_has_its_place(verb: str) -> None:
    known = {name for names in helping.GROUPS.values() for name in names.split()} | {"--debug", "--verbose"}
    for item in COMMANDS[verb].params:
        if isinstance(item, click.Option):
            assert {*item.opts} & (known | helping.FORMER), f"{verb} {item.opts} stands in no group of cli/help.py"


def test_one_word_means_one_thing() -> None:
    """An option of several verbs has one help text, but for those that are about the verb itself."""
    own = {
        "--output",
        "--model",
        "--force",
        "--version",
        "--work",
        "--runtime",
        "--json",
        "--data",
        "--seed",
        "--budget",
    }
    told: dict[str, set[str]] = {}
    for verb in COMMANDS:
        for item in COMMANDS[verb].params:
            if isinstance(item, click.Option) and item.opts[0] not in own | OF_THE_VERB:
                told.setdefault(item.opts[0], set()).add(DEFAULT.sub("", str(item.help)))
    assert {name: texts for name, texts in told.items() if len(texts) > 1} == {}
    assert not [text for texts in told.values() for text in texts if re.search("may be repeated|several times", text)]


@pytest.mark.parametrize(
    ("former", "now", "value"),
    [("--timeout-s", "timeout_s", 3.0), ("--dataset", "data", "random"), ("--model-version", "version", "2")],
)
def test_former_spellings_work_and_are_not_shown(
    former: str, now: str, value: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with COMMANDS["perf"].make_context("perf", ["x", former, str(value)]) as context:
        assert context.params[now] == value
    assert former not in printed("perf", 80, monkeypatch, capsys)


def test_an_example_that_is_too_long_goes_on_behind_a_backslash() -> None:
    line = 'repo-builder perf bert --url gpu-7:8001 --shape "ids:1;mask:1"   over the network'
    broken = list(helping._example(line, 44))
    assert broken[0] == "# over the network"
    assert all(len(item) <= 44 for item in broken)
    assert " ".join("\n".join(broken[1:]).replace(" \\\n", " ").split()) == line.partition("   ")[0]
    assert '--shape "ids:1;mask:1"' in broken[-1]
