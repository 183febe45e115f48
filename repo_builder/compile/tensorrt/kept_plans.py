"""Plans that were built before: the same graph with the same profiles and options is not built twice on one machine.

A build that weighs int8 against fp16 builds the fp16 form, and who then asks for fp16 asks for that very plan. One file
a plan, with what is known of it in front; the oldest go once they are more than ``MOST_BYTES`` together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repo_builder.core import codec, files, foreign
from repo_builder.core.errors import RepoBuilderError

if TYPE_CHECKING:  # what needs TensorRT is handed in
    from repo_builder.compile.tensorrt.build import BuildRequest, Built
    from repo_builder.compile.tensorrt.log import Say

MOST_BYTES = 2 << 30
_HEAD = len(hashlib.sha256().digest())


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is kept of how a plan came about; fields as those of ``Built``."""

    seconds: float
    flags: tuple[str, ...]
    constraints: int
    cached_tactics_bytes: int


Build = Callable[["BuildRequest", "Say"], "Built"]


def keeping(build: Build, folder: Path, machine: str, make: type[Built]) -> Build:
    """Return a builder that looks for a plan in a folder first, and puts what it builds there.

    Args:
        build: Builds a plan.
        folder: The folder; made where it is not there.
        machine: What a plan is for: TensorRT's version and the GPU.
        make: What is returned.
    """

    def found_or_built(request: BuildRequest, say: Say) -> Built:
        place = folder / f"{_key(request, machine)}.plan"
        started = time.perf_counter()
        data = place.read_bytes() if place.is_file() else b""
        told, plan = _read(data)
        if told:
            os.utime(place)  # what is used is not what goes first
            note = f"the plan was built before, in {told.seconds:.0f} s: it is used again"
            return make(
                plan=plan,
                seconds=time.perf_counter() - started,
                flags=told.flags,
                constraints=told.constraints,
                cached_tactics_bytes=told.cached_tactics_bytes,
                notes=(note,),
                reused=True,
            )
        built = build(request, say)
        known = {item.name: getattr(built, item.name) for item in dataclasses.fields(_Known)}
        head = json.dumps(codec.plain(_Known(**known))).encode()
        body = head + b"\n" + built.plan
        folder.mkdir(parents=True, exist_ok=True)
        files.write_bytes(place, hashlib.sha256(body).digest() + body)
        _trim(folder, place)
        return built

    return found_or_built


def _key(request: BuildRequest, machine: str) -> str:
    """Return a hash of all that decides what plan comes out, the tactics' times apart."""
    asked = dataclasses.asdict(request)
    # neither where the files are nor who builds how fast changes what a plan computes
    for name in ("model", "timing_cache", "threads"):
        asked.pop(name)
    asked["pinned"] = sorted(request.pinned)
    code = files.sha256_of(Path(__file__).with_name("build.py"))  # another one may ask TensorRT for something else
    graph = files.sha256_of(request.model)
    return files.sha256_of_json({"machine": machine, "code": code, "graph": graph, "asked": asked})


def _read(data: bytes) -> tuple[_Known | None, bytes]:
    """Return what is known of a plan, and it; None where the file is damaged or empty."""
    digest, body = data[:_HEAD], data[_HEAD:]
    if not body or hashlib.sha256(body).digest() != digest:
        return None, b""
    head, _, plan = body.partition(b"\n")
    try:
        return codec.build(_Known, foreign.parsed(json.loads, head)), plan
    except (ValueError, RepoBuilderError):  # of another version, which told something else of a plan
        return None, b""


def _trim(folder: Path, keep: Path) -> None:
    """Remove the plans that were used longest ago, until the rest is small enough."""
    kept = sorted(folder.glob("*.plan"), key=lambda item: item.stat().st_mtime)
    total = sum(item.stat().st_size for item in kept)
    for item in kept:
        if total <= MOST_BYTES:
            return
        if item != keep:
            total -= item.stat().st_size
            item.unlink(missing_ok=True)
