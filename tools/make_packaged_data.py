#!/usr/bin/env python3
"""Make the data files that ship in repo_builder/data: the digits of scikit-learn and a sample of the simulated jets.

The jets are the first of each class in the order of the simulated file, which is already random. Needs numpy and
scikit-learn; ``jets.npz`` is what ``simulate_jets.py`` writes.

    python tools/make_packaged_data.py --jets jets.npz --per-class 4000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

DATA = Path(__file__).resolve().parent.parent / "repo_builder" / "data"


def make_digits(path: Path) -> None:
    """Write images uint8 (1797, 8, 8) and labels uint8 (1797,)."""
    digits = load_digits()
    np.savez_compressed(path, images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))


def make_jets(simulated: Path, path: Path, per_class: int) -> None:
    """Write features fp32 (n, 16), labels uint8 (n,), and the names of both, in the order of the simulated file."""
    with np.load(simulated, allow_pickle=False) as stored:
        labels = stored["y"]
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == item)[:per_class] for item in np.unique(labels)]))
        np.savez_compressed(
            path,
            features=stored["X"][chosen],
            labels=labels[chosen],
            feature_names=stored["feature_names"],
            classes=stored["class_names"],
        )


def main() -> None:
    """Write both files and print their sizes."""
    parser = argparse.ArgumentParser(description="Make the data files that ship in repo_builder/data.")
    parser.add_argument("--jets", type=Path, required=True, help="the file that simulate_jets.py wrote")
    parser.add_argument("--per-class", type=int, default=4000)
    arguments = parser.parse_args()
    make_digits(DATA / "digits.npz")
    make_jets(arguments.jets, DATA / "jets.npz", arguments.per_class)
    for path in sorted(DATA.glob("*.npz")):
        print(f"{path.stat().st_size:>9,} bytes  {path}")


if __name__ == "__main__":
    main()
