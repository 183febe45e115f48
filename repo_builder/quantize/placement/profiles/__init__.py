"""The profiles of all targets: one module, and one row here, for each."""

from __future__ import annotations

from repo_builder.core.errors import QuantizeError, did_you_mean
from repo_builder.quantize.placement.profiles.onnxruntime_cpu import ONNXRUNTIME_CPU
from repo_builder.quantize.placement.profiles.tensorrt import TENSORRT
from repo_builder.quantize.placement.table import Profile

PROFILES: dict[str, Profile] = {item.name: item for item in (ONNXRUNTIME_CPU, TENSORRT)}


def profile(name: str) -> Profile:
    """Return a target's profile by name.

    Raises:
        QuantizeError: There is none of that name.
    """
    if name not in PROFILES:
        raise QuantizeError(f"there is no placement profile '{name}'", hint=did_you_mean(name, PROFILES))
    return PROFILES[name]
