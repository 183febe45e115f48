"""Small models, right and broken, for every field of ModelConfig that Triton looks at.

``write`` puts them into a repository; what the real tritonserver says of each stands in ``oracle.json``, which
``make_oracle.py`` makes. A model's name says which field it is about and, after the dot, what is done to it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from oracle_matrix.batching import batching
from oracle_matrix.ensembles import PARTS, ensembles
from oracle_matrix.files import files
from oracle_matrix.instances import instances
from oracle_matrix.models import Case
from oracle_matrix.onnx_files import onnx_files
from oracle_matrix.sequences import sequences
from oracle_matrix.tensors import labels, tensors
from oracle_matrix.warmup import warmup

# Those that keep the server waiting for ever are asked about one by one.
_FILES = files()
_ALONE = [
    name for name in _FILES if name.startswith("model_py.") or name in ("default_model_filename.gone", "version.empty")
]
_TOGETHER = {**PARTS, **ensembles()}  # ensembles find the models of their steps in one server
GROUPS: tuple[dict[str, Case], ...] = (
    tensors(),
    labels(),
    batching(),
    sequences(),
    warmup(),
    instances(),
    {name: case for name, case in _FILES.items() if name not in _ALONE},
    _TOGETHER,
    onnx_files(),
    *({name: _FILES[name]} for name in _ALONE),
)
CASES: dict[str, Case] = {name: case for group in GROUPS for name, case in group.items()}


def write(repository: Path, cases: dict[str, Case]) -> None:
    """Write models into a repository."""
    for name, case in cases.items():
        folder = repository / name
        folder.mkdir(parents=True)
        for place in case.folders:
            (folder / place).mkdir()
        for place, content in case.files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(content)
        if case.text is not None:
            (folder / "config.pbtxt").write_text(case.text, encoding="utf-8")


def digest(name: str) -> str:
    """Return the digest of all that lies in a model's folder, by which a verdict on another content is told.

    An ensemble loads as its steps do, so theirs is in its own.
    """
    found = hashlib.sha256()
    for one in [name, *sorted(PARTS) * (name in _TOGETHER)]:
        case = CASES[one]
        places = [(f"{place}/", b"") for place in case.folders] + list(case.files.items())
        for place, content in [("", (case.text or "").encode()), *sorted(places)]:
            found.update(f"{one} {place} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]
