"""What is run as a server: one command, and what there is to know of it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from repo_builder.serve.run.mps import Mps


@dataclass(frozen=True, kw_only=True)
class Job:
    """The command that runs Triton, in the foreground of whatever starts it.

    Attributes:
        command: Program and arguments.
        environment: The whole environment.
        runtime: ``embedded`` or ``container``.
        root: The model repository as Triton is told it.
        explicit: Whether models are loaded and unloaded through its interface.
        polls: Whether it looks for new models by itself.
        backends: Backends that serve, and whose they are: ``native`` or ``embedded``.
        cached: What is to be said of the response cache; empty where no model asks for it.
        mps: The CUDA MPS that its processes are to use.
        removal: The command that removes what may be left when it has ended.
    """

    command: list[str]
    environment: Mapping[str, str]
    runtime: str
    root: Path
    explicit: bool = False
    polls: bool = False
    backends: Mapping[str, str] = field(default_factory=dict)
    cached: str = ""
    mps: Mps | None = None
    removal: list[str] = field(default_factory=list)

    def set_out(self) -> None:
        """Make what the command needs to be there; to be called before each start of it."""
        if self.mps is not None:
            self.mps.make_folders()

    def clean_up(self) -> None:
        """Remove what may be left of it when it has ended; harmless when nothing is."""
        if self.removal:
            subprocess.run(self.removal, capture_output=True, timeout=30, check=False)
        if self.mps is not None:
            self.mps.clean_up()

    def to_json(self) -> str:
        """Return it as JSON, without its environment."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        mps = self.mps.to_dict() if self.mps else None
        return json.dumps({**value, "environment": {}, "root": str(self.root), "mps": mps})

    @classmethod
    def from_json(cls, text: str, environment: Mapping[str, str]) -> Job:
        """Return what ``to_json`` was called on."""
        value = json.loads(text)
        mps = Mps.from_dict(value["mps"]) if value["mps"] else None
        return cls(**{**value, "environment": dict(environment), "root": Path(value["root"]), "mps": mps})
