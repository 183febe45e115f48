"""Ask the real tritonserver about every model of the matrix, and keep what it says in oracle.json.

    .venv/bin/python tests/repository/make_oracle.py [NAME ...]

needs the `embedded` extra and no GPU, and takes about two minutes. It is to be run again when the matrix, the embedded
backends or the version of nvidia-pytriton change; with names, only those models are asked about again.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import oracle_matrix
from oracle_matrix.models import Case

from repo_builder.core import environment
from repo_builder.serve.run import assembly, embedded

ORACLE = Path(__file__).with_name("oracle.json")
PATIENCE_S = 150.0
PATIENCE_FOR_ONE_S = 45.0  # some broken models keep the server waiting for ever
AT_ONCE = 32  # models a server: each of the Python backend is a process


def main() -> None:
    """Make the table again."""
    wanted = set(sys.argv[1:])
    found: dict[str, dict[str, Any]] = {}
    for group in oracle_matrix.GROUPS:
        if wanted and not wanted & set(group):
            continue
        names = list(group)
        ensembles = "sound" in group
        for start in range(0, len(names), len(names) if ensembles else AT_ONCE):
            part = names if ensembles else names[start : start + AT_ONCE]
            part = [name for name in part if not wanted or ensembles or name in wanted]
            found |= ask({name: group[name] for name in part}) if part else {}
            keep({name: said for name, said in found.items() if not wanted or name in wanted})
            print(f"{len(found)} models asked", file=sys.stderr)


def keep(found: dict[str, dict[str, Any]]) -> None:
    """Put what was found into the table; models that are no longer in the matrix leave it."""
    table = json.loads(ORACLE.read_text(encoding="utf-8"))["models"] if ORACLE.exists() else {}
    table |= {name: {**said, "of": oracle_matrix.digest(name)} for name, said in found.items()}
    table = {name: table[name] for name in sorted(oracle_matrix.CASES) if name in table}
    document = {"pytriton": environment.version("nvidia-pytriton"), "models": table}
    ORACLE.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def ask(cases: dict[str, Case]) -> dict[str, dict[str, Any]]:
    """Load models in one server; where that ends it, each half by itself, to find the one that does."""
    with tempfile.TemporaryDirectory() as place:
        repository = Path(place) / "r"
        oracle_matrix.write(repository, cases)
        said = serve(repository, Path(place) / "log")
    if said is not None:
        return said
    if len(cases) == 1:
        return {name: {"loads": False, "words": "tritonserver ends, or waits for ever"} for name in cases}
    names = list(cases)
    half = len(names) // 2
    return ask({name: cases[name] for name in names[:half]}) | ask({name: cases[name] for name in names[half:]})


def serve(repository: Path, log: Path) -> dict[str, dict[str, Any]] | None:
    """Return model → whether it loads and the server's words; None where the server ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wheel = embedded.find_wheel()
    command = [
        str(wheel.server), f"--model-repository={repository}", f"--backend-directory={assembly.assemble(wheel)}",
        f"--http-port={port}", "--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false",
        "--exit-on-error=false", "--strict-readiness=false", "--pinned-memory-pool-byte-size=0",
    ]  # fmt: skip
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream, env=embedded.stub_environment(wheel))
    try:
        alone = len(list(repository.iterdir())) == 1
        rows = index(server, port, PATIENCE_FOR_ONE_S if alone else PATIENCE_S)
    finally:
        server.kill()
        server.wait()
    if rows is None:
        print(f"{len(list(repository.iterdir()))} models: {log.read_text(errors='replace')[-300:]}", file=sys.stderr)
        return None
    said: dict[str, dict[str, Any]] = {}
    for folder in sorted(repository.iterdir()):
        mine = [row for row in rows if row["name"] == folder.name]
        wrong = [row for row in mine if row.get("state") != "READY" and row.get("reason") != "unloaded"]
        words = "; ".join(sorted({clean(row.get("reason", ""), repository) for row in wrong}))
        said[folder.name] = {"loads": bool(mine) and not wrong, "words": words}
    return said


def index(server: subprocess.Popen[bytes], port: int, patience_s: float) -> list[dict[str, Any]] | None:
    """Wait until every model has loaded or failed, and return the repository's index; None where the server ended."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/repository/index", method="POST")
    deadline = time.monotonic() + patience_s
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - a loopback address
                rows: list[dict[str, Any]] = json.load(response)
            if not any(row.get("state") == "LOADING" for row in rows):
                return rows
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    return None


def clean(words: str, repository: Path) -> str:
    """Return the server's words without what differs from run to run, on one line."""
    words = words.replace(str(repository), "REPOSITORY")
    words = re.sub(r"At:\s.*", "", words, flags=re.DOTALL)
    words = re.sub(r"/\S*/(?=[\w.]+)", "/", words)
    return " ".join(words.split())[:400]


if __name__ == "__main__":
    main()
