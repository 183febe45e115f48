"""Run every test that needs a GPU and keep each one's outcome beside the machine that it ran on.

    python benchmarks/gpu_tests.py RESULTS.json

The exit code is pytest's. With ``--junit REPORT.xml ...`` the tests are not run, and those reports of theirs are kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from gpu_facts import head

from repo_builder.core import files

PYTEST = ("pytest", "-m", "gpu", "tests/gpu", "tests/measure")


def main() -> None:
    """Run the tests and write what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--junit", type=Path, nargs="+", help="pytest's reports of a run on this machine")
    options = parser.parse_args()
    facts, code, reports = head(), 0, options.junit
    with tempfile.TemporaryDirectory() as temporary:
        if not reports:
            reports = [Path(temporary) / "report.xml"]
            code = subprocess.run([sys.executable, "-m", *PYTEST, f"--junitxml={reports[0]}"], check=False).returncode
        outcomes = {name: outcome for report in reports for name, outcome in read(report).items()}
    files.write_json(options.results, {**facts, "command": " ".join(("python", "-m", *PYTEST)), "outcomes": outcomes})
    sys.exit(code)


def read(report: Path) -> dict[str, str]:
    """Return the outcome of each test in one of pytest's JUnit reports; a skipped one says why."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - written by the pytest that was just run
        ended = [f"{item.tag}: {item.get('message')}" for item in case if item.tag in ("failure", "error", "skipped")]
        module = str(case.get("classname")).rpartition(".")[2]
        found[f"{module}::{case.get('name')}"] = ended[0] if ended else "passed"
    return found


if __name__ == "__main__":
    main()
