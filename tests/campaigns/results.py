"""What a campaign found: figures, and each sort of problem with how often it came."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Result:
    """Figures and problems of one part of a campaign.

    Attributes:
        figures: What was tried, as ``inputs`` or ``kills``; numbers only.
        problems: Sort of problem → how often; the goal is none.
    """

    figures: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, *names: str) -> None:
        """Add one to figures, from any thread."""
        with self._lock:
            self.figures.update(names)

    def problem(self, sort: str, text: str = "") -> None:
        """Count a problem, and print the first of its sort."""
        with self._lock:
            self.problems[sort] += 1
            first = self.problems[sort] == 1
        if first:
            print(f"  PROBLEM {sort}: {' '.join(text.split())[:300]}", flush=True)
