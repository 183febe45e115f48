"""The campaigns: ``python tests/campaigns [PART ...] --seconds BUDGET``, which ``make campaign BUDGET=600`` calls.

The budget is divided among the parts. Each run adds its figures to docs/reliability.json, from which the table of
docs/reliability.md is written, and takes another seed; so a campaign can be made in pieces, also side by side. The exit
code is 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Before anything of Triton's: the campaigns' servers are remembered in a folder of their own.
SCRATCH = Path(os.environ.get("CAMPAIGN_FOLDER") or tempfile.mkdtemp(prefix="campaign."))
os.environ["XDG_CACHE_HOME"] = str(SCRATCH / "state")

import attack  # noqa: E402
import faults  # noqa: E402
import figures  # noqa: E402
import fuzz  # noqa: E402
import kill  # noqa: E402
import properties  # noqa: E402
from results import Result  # noqa: E402

# part → (what runs it, its share of the budget)
PARTS: dict[str, tuple[Callable[..., Result], float]] = {
    "kill": (kill.run, 0.25),
    "fuzz": (fuzz.run, 0.4),
    "attack": (attack.run, 0.05),
    "faults": (faults.run, 0.2),
    "properties": (properties.run, 0.1),
}


def main() -> int:
    """Run the parts that are asked for, one after another, each in a process of its own."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to run; all where none is named")
    asked.add_argument("--seconds", type=float, default=600.0, help="budget of all parts together")
    asked.add_argument("--seed", type=int, help="seed; a new one each time where left out")
    asked.add_argument("--count", type=int, help="what is tried at the most, in each part or of each kind")
    asked.add_argument("--dry", action="store_true", help="record nothing")
    options = asked.parse_args()
    chosen = options.parts or list(PARTS)
    total = sum(PARTS[part][1] for part in chosen)
    failed = False
    for part in chosen:
        seconds = options.seconds * PARTS[part][1] / total
        seed = options.seed or int.from_bytes(os.urandom(3), "big")
        pid = os.fork()  # audit hooks, threads and torch stay with the part that needs them
        if not pid:
            os._exit(_run(part, seconds, seed, options.count, dry=options.dry))
        failed |= os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
    return int(failed)


def _run(part: str, seconds: float, seed: int, count: int | None, *, dry: bool) -> int:
    folder = SCRATCH / part
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"{part}: {seconds:.0f} s with seed {seed} in {folder}", flush=True)
    begin = time.monotonic()
    code = 1
    try:
        os.chdir(folder)
        result = PARTS[part][0](folder, seconds, seed, count=count)
        print(f"{part}: {dict(result.figures)}, problems: {dict(result.problems) or 'none'}", flush=True)
        if not dry:
            figures.add(part, seed, time.monotonic() - begin, result)
        code = int(bool(result.problems))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
