"""Energy of this machine's CPU packages, from Linux' powercap (RAPL), where this user may read it."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")  # AMD's packages have this name too; what stands below one is part of it


class Packages:
    """The energy counters of the CPU packages, added up from the moment this is made.

    Args:
        root: Folder of the powercap classes.

    Attributes:
        missing: Why there is no counter; empty where there is one.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._last: dict[Path, int] = {}
        self._range: dict[Path, int] = {}
        self._joules = 0.0
        folders = [item for item in sorted(root.glob("intel-rapl:*")) if _PACKAGE.fullmatch(item.name)]
        self.missing = "" if folders else f"this machine has no energy counter in {root}"
        try:
            for folder in folders:
                self._range[folder] = int((folder / "max_energy_range_uj").read_text())
                self._last[folder] = int((folder / "energy_uj").read_text())
        except (OSError, ValueError) as error:
            self._last.clear()
            self.missing = f"{folder / 'energy_uj'} cannot be read ({getattr(error, 'strerror', None) or error})"

    def joules(self) -> float | None:
        """Return the energy of all packages since the start, idle included; None where it cannot be read.

        A counter starts anew at ``max_energy_range_uj``, which takes minutes at the least: one turn is made up for.
        """
        if not self._last:
            return None
        try:
            for folder, before in self._last.items():
                now = int((folder / "energy_uj").read_text())
                self._joules += (now - before + (self._range[folder] if now < before else 0)) / 1e6
                self._last[folder] = now
        except (OSError, ValueError) as error:
            self._last, self.missing = {}, f"the CPU's energy counter broke off ({error})"
            return None
        return self._joules
