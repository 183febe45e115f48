"""``ranges.npz``: what calibration saw, kept beside the graph and good while graph and samples are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repo_builder.core import archive
from repo_builder.core.errors import DataError, QuantizeError
from repo_builder.quantize.ranges import Observed, Ranges, TensorRange, WeightRange

FILE = "ranges.npz"


def write(path: Path, key: str, seen: Observed, ranges: Ranges) -> None:
    """Write what was seen and the ranges that were made of it.

    Args:
        path: The file.
        key: Hash of the graph, the samples and the back end.
        seen: What calibration saw.
        ranges: The ranges under the recipe's rules.
    """
    tensors, weights = list(ranges.tensors), list(ranges.weights)
    found = list(ranges.tensors.values())
    np.savez(
        path,
        key=np.array(key),
        seen_tensors=_texts(list(seen.low)),
        seen_low=np.array(list(seen.low.values()), np.float64),
        seen_high=np.array([seen.high[name] for name in seen.low], np.float64),
        kept_tensors=_texts([name for name, _ in seen.amax]),
        kept_calibrators=_texts([name for _, name in seen.amax]),
        kept_amax=np.array(list(seen.amax.values()), np.float64),
        tensors=_texts(tensors),
        low=np.array([item.low for item in found], np.float64),
        high=np.array([item.high for item in found], np.float64),
        amax=np.array([item.amax for item in found], np.float64),
        calibrators=_texts([item.calibrator for item in found]),
        weights=_texts(weights),
        **{f"weight_{place}": ranges.weights[name].amax for place, name in enumerate(weights)},
    )


def read_ranges(path: Path) -> Ranges:
    """Read the ranges.

    Raises:
        QuantizeError: The file is missing or damaged.
    """
    try:
        saved = archive.read_all(path)
        columns = [saved[name].tolist() for name in ("tensors", "low", "high", "amax", "calibrators")]
        tensors = {
            name: TensorRange(low=low, high=high, amax=amax, calibrator=calibrator)
            for name, low, high, amax, calibrator in zip(*columns, strict=True)
        }
        weights = {
            name: WeightRange(amax=saved[f"weight_{place}"]) for place, name in enumerate(saved["weights"].tolist())
        }
    except (DataError, KeyError, TypeError, ValueError) as error:
        said = error.message if isinstance(error, DataError) else str(error)
        raise QuantizeError(f"cannot be read ({said})", where=str(path), hint="build again with --force") from error
    return Ranges(tensors=tensors, weights=weights)


def read_observed(path: Path, key: str) -> Observed | None:
    """Read what an earlier calibration saw; None where there is none of this key."""
    try:
        saved = archive.read_all(path)
        if str(saved["key"]) != key:
            return None
        names = saved["seen_tensors"].tolist()
        kept = zip(saved["kept_tensors"].tolist(), saved["kept_calibrators"].tolist(), strict=True)
        return Observed(
            low=dict(zip(names, saved["seen_low"].tolist(), strict=True)),
            high=dict(zip(names, saved["seen_high"].tolist(), strict=True)),
            amax=dict(zip(kept, saved["kept_amax"].tolist(), strict=True)),
        )
    except (DataError, KeyError, TypeError, ValueError):
        return None


def _texts(values: list[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.str_]]:
    return np.array(values, np.str_) if values else np.zeros(0, "U1")
