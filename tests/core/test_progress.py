from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder.core import progress


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (4100, "4.1 kB"), (2_340_000, "2.3 MB"), (5e10, "50.0 GB")]
)
def test_sizes(size: int, text: str) -> None:
    assert progress.human_bytes(int(size)) == text


def test_a_step_ends_with_path_size_and_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x[1].bin"
    path.write_bytes(b"12345")
    with progress.step("export [red]") as step:
        step.note("opset 17")
        step.wrote(path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "done" in captured.err
    assert f"opset 17  {path}  5 B  sha256:5994471abb01" in captured.err
    assert "\x1b" not in captured.err  # no colours where stderr is no terminal


def test_a_step_that_fails_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), progress.step("calibrate"):
        raise RuntimeError
    assert "failed" in capsys.readouterr().err


def test_a_bar_away_from_a_terminal_is_the_plain_iterable(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.bar(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
