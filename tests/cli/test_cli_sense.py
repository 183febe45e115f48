from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

import repo_builder as rb
from repo_builder import cli
from repo_builder.cli.durations import Seconds


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sense_tells_its_cost_first_and_prints_layers_a_page_and_json(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sense", "jsc-tiny", "--target", "onnxruntime", "--budget", "1m"]
    assert cli.run([*arguments, "--report", "page.html"]) == 0
    captured = capsys.readouterr()
    assert "the budget is 60 s" in captured.err
    assert "1 layers in int8, each alone: about" in captured.err
    for text in ("layers.2", "95 % interval", "CPU time of one thread", "all of them together in int8"):
        assert text in captured.out, text
    assert "layers.2" in (here / "page.html").read_text(encoding="utf-8")
    assert cli.run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"][0]["name"] == "layers.2"
    assert document["fresh"] == 0
    found = rb.sense("jsc-tiny", target="onnxruntime", budget=60)
    assert {**json.loads(json.dumps(found.to_dict())), "seconds": 0} == {**document, "seconds": 0}
    assert [row.name for row in found.layers] == ["layers.2"]
    assert "layers.2" in found.report("own.html").read_text(encoding="utf-8")
    assert cli.run([*arguments, "--output", "former.html", "--json"]) == 0
    assert (here / "former.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sense", "vvg"], 3, "did you mean 'vgg'"),
        (["sense", "vgg", "--budget", "soon"], 2, "'soon' is no time"),
        (["sense", "vgg", "--budget", "0s"], 2, "is no time"),
        (["build", "vgg", "--max-drop", "0.3"], 2, "add --search"),
        (["build", "vgg", "--search", "--max-drop", "-1"], 2, "-1"),
        (["build", "vgg", "--search", "--timings", "none.json"], 2, "none.json"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("2 min", 120)])
def test_durations_are_what_people_write(text: str, seconds: float) -> None:
    assert Seconds().convert(text, None, None) == seconds


def test_a_duration_of_weeks_is_a_slip() -> None:
    with pytest.raises(click.BadParameter):
        Seconds().convert("999h", None, None)
