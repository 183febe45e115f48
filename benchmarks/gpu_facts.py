"""What every file of results from a GPU says first."""

from __future__ import annotations

import time
from typing import Any

from repo_builder.core import device, environment


def head() -> dict[str, Any]:
    """Return the schema's number, the present time, and the machine with its driver, CUDA and libraries."""
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"schema": 1, "made": made, "machine": {**environment.describe(), "cuda": device.versions()}}
