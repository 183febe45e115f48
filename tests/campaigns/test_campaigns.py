"""The campaigns' own parts: what they send is what they mean to send, and what is recorded is what is shown."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import figures
import forks
import mutations
import properties
import pytest
import subjects
from proxy import FAULTS, Proxy
from results import Result

CAMPAIGNS = Path(__file__).parent


def test_the_page_shows_what_is_recorded() -> None:
    text = figures.PAGE.read_text(encoding="utf-8")
    assert figures.page(text, figures.read()) == text


def test_the_table_sums_runs_and_lists_problems() -> None:
    runs = [
        {"part": "kill", "seconds": 60, "figures": {"kills": 120}, "problems": {}, "commit": "abc"},
        {"part": "kill", "seconds": 60, "figures": {"kills": 130}, "problems": {"litter": 2}, "commit": "abc"},
    ]
    table = figures.table({"runs": runs})
    assert "| kill | 250 kills (goal 200) | 2 |" in table
    assert "- kill: litter: 2" in table
    assert "Made of commit abc." in table


def test_mutations_are_the_seeds_and_change_something() -> None:
    value = {"a": [1, 2, {"b": "text"}], "c": 1.5}
    for seed in range(200):
        for damage in (
            lambda rnd: mutations.bytes_of(b"0123456789" * 20, rnd),
            lambda rnd: mutations.text_of(subjects.RECIPE, rnd),
            lambda rnd: mutations.json_of(value, rnd),
            lambda rnd: mutations.model_of(subjects.dense(), rnd),
        ):
            assert damage(random.Random(seed)) == damage(random.Random(seed))
    assert len({mutations.json_of(value, random.Random(seed)) for seed in range(200)}) > 100
    assert json.dumps(value) == '{"a": [1, 2, {"b": "text"}], "c": 1.5}'


def _hang() -> int:
    time.sleep(60)
    return 0


def _raise() -> int:
    raise KeyError("x")


def _flood() -> int:
    print("x" * (forks.MOST_SAID + 1))
    return 0


@pytest.mark.parametrize(
    ("call", "code", "fault"),
    [
        ("lambda: 0", 0, ""),
        ("lambda: 4", 4, ""),
        ("lambda: 70", 70, "exit 70"),
        ("lambda: __import__('sys').exit(3)", 3, ""),
        ("_raise", 70, "traceback: KeyError in ?"),
        ("_hang", None, "hang: over 1 s"),
        ("_flood", 0, "said over 20000 bytes"),
        ("lambda: __import__('os').abort()", None, "died with -6"),
    ],
)
def test_a_trial_tells_every_sort_of_end(tmp_path: Path, call: str, code: int | None, fault: str) -> None:
    """In a process of its own: pytest's has threads, which a fork does not take along."""
    script = (
        f"import sys, pathlib; sys.path[:0] = [{str(CAMPAIGNS)!r}]; import forks\n"
        "from test_campaigns import _hang, _raise, _flood\n"
        f"found = forks.trial({call}, pathlib.Path('said'), limit_s=1 if {call!r} == '_hang' else 60)\n"
        "print(repr((found.code, found.fault)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == repr((code, fault)), done.stderr


@pytest.mark.parametrize("fault", FAULTS)
def test_the_proxy_passes_on_until_its_fault_begins(fault: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as echo:
        threading.Thread(target=_echo, args=(echo,), daemon=True).start()
        address = f"127.0.0.1:{echo.getsockname()[1]}"
        whole, faulty = Proxy(address, fault, after_s=600), Proxy(address, fault, seed=1)
        assert _answers(whole.address) == [b"hello there"] * 40
        if fault not in ("delay", "dribble"):
            assert _answers(faulty.address) != [b"hello there"] * 40
        whole.close()
        faulty.close()


def _echo(listener: socket.socket) -> None:
    while True:
        try:
            connection = listener.accept()[0]
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(100):
            connection.sendall(data)


def _answers(address: str) -> list[bytes]:
    host, _, port = address.rpartition(":")
    found = []
    with socket.create_connection((host, int(port)), timeout=0.5) as connection, suppress(OSError):
        for _ in range(40):
            connection.sendall(b"hello there")
            found.append(connection.recv(100))
    return found


def test_examples_are_counted_in_what_hypothesis_says(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from hypothesis import given, settings, strategies as st\n\n"
        "@settings(max_examples=7, database=None)\n@given(st.floats())\ndef test_a(x): pass\n\n"
        "@settings(max_examples=4, database=None)\n@given(st.floats())\ndef test_b(x): pass\n"
    )
    told = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--hypothesis-show-statistics",
        "test_it.py",
    ]
    said = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True, timeout=300).stdout
    assert properties.examples(said) == 11
    assert properties.examples("no tests ran in 0.01s") == 0


def test_a_result_counts_problems_by_their_sort(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result()
    result.problem("hang", "first\nof all")
    result.problem("hang", "second")
    assert result.problems == {"hang": 2}
    assert capsys.readouterr().out == "  PROBLEM hang: first of all\n"


@pytest.mark.slow
def test_campaigns_run(tmp_path: Path) -> None:
    command = [sys.executable, str(CAMPAIGNS), "fuzz", "kill", "--count", "1", "--seed", "5", "--dry"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-500:]
    assert "'inputs':" in done.stdout
    assert "'builds':" in done.stdout
