"""Networks of the GPU zoo as Triton serves them, beside what their engines do alone: a row for gpu_zoo.json.

    python benchmarks/gpu_serving.py WORK RESULTS.json [--seconds N] network/form ...

WORK is the ``--build`` folder of gpu_zoo.py, whose plans and repository are served by the embedded Triton: one and four
instances, with and without CUDA MPS, loaded by `repo-builder perf` with batch 64 × concurrency 4 in CUDA shared memory.
RESULTS.json is a file of gpu_zoo.py that has the network's row; what is measured is put into it case by case. A network
takes about a minute; ``--seconds`` ends the script between two cases.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from repo_builder import serve
from repo_builder.core import files

BATCH, CONCURRENCY = 64, 4
CASES = ((1, False), (4, False), (1, True), (4, True))  # instances, whether with MPS
_SHARE = 0.9


def main() -> None:
    """Serve and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--cases", type=int, nargs="*", default=list(range(len(CASES))))
    parser.add_argument("networks", nargs="+")
    asked = parser.parse_args()
    end = time.monotonic() + asked.seconds
    for entry in asked.networks:
        name, _, form = entry.partition("/")
        for instances, mps in (CASES[place] for place in asked.cases):
            if time.monotonic() > end:
                return
            found = json.loads(asked.results.read_text())
            row = found["networks"][name][form]
            if "latency_us" not in row:
                break
            alone = BATCH / row["latency_us"][str(BATCH)]["p50"] * 1e6
            served = case(asked.work, f"{name}-{form.replace(' ', '-')}", instances, mps=mps)
            if "inferences_per_s" in served:
                served["share_of_engine"] = round(served["inferences_per_s"] / alone, 3)
                served["reached"] = served["share_of_engine"] >= _SHARE
            key = f"{instances} instance{'s' * (instances > 1)}{', MPS' * mps}"
            row.setdefault("served", {"engine_inferences_per_s": round(alone)})[key] = served
            files.write_json(asked.results, found)
            print(name, form, key, json.dumps(served)[:400], flush=True)


def case(work: Path, model: str, instances: int, *, mps: bool) -> dict[str, Any]:
    """Return what one number of instances answers; what failed says so."""
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        folder = Path(temporary)
        shutil.copytree(work / "repository" / model, folder / "repository" / model)
        config = folder / "repository" / model / "config.pbtxt"
        text, changed = re.subn(
            r"(instance_group\b.*?\bcount: )\d+", rf"\g<1>{instances}", config.read_text(), flags=re.S
        )
        if not changed:
            return {"failed": f"no instance_group in {config}"}
        config.write_text(text)
        log = work / f"triton-{model}-{instances}{'-mps' * mps}.log"
        try:
            with serve.start(
                folder / "repository", http_port=0, grpc_port=0, metrics_port=0, log=log, mps=mps
            ) as server:
                server.wait_ready(120)
                return measured(work, model, server, folder / "perf.json")
        except Exception as error:  # the server's, MPS's
            return {"failed": f"{type(error).__name__}: {str(error)[:400]}"}


def measured(work: Path, model: str, server: Any, out: Path) -> dict[str, Any]:  # noqa: ANN401 - serve's
    """Load a server; return the level and the rungs of the accuracy ladder down to what was served."""
    command = [sys.executable, "-m", "repo_builder", "perf", model, "--url", server.grpc_url, "--work", str(work)]
    command += ["--metrics-url", server.metrics_url, "--batch-size", str(BATCH), "--concurrency", str(CONCURRENCY)]
    command += ["--shared-memory", "cuda", "--duration", "4", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if not out.is_file():
        return {"failed": done.stderr.strip()[-400:], "exit": done.returncode}
    told = json.loads(out.read_text())
    level = told["levels"][0]
    ladder = told.get("ladder") or {}
    return {
        "inferences_per_s": round(level["infer_per_s"]),
        "latency": level.get("latency"),
        "failures": level.get("failures"),
        "server": level.get("server"),  # where a request's time goes, by Triton's statistics
        "network_and_client_us": level.get("network_and_client_us"),
        "exit": done.returncode,
        "ladder": ladder.get("rungs"),
        "culprit": ladder.get("culprit"),
    }


if __name__ == "__main__":
    main()
