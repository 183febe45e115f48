"""``ranges.npz``: what calibration saw, kept beside the graph and good while graph and samples are the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from repo_builder.core import archive, codec, foreign
from repo_builder.core.errors import DataError, QuantizeError, RecipeError
from repo_builder.core.records import RepairRecord
from repo_builder.core.tensors import Array
from repo_builder.quantize.ranges import BlockRange, Observed, Ranges, TensorRange, WeightRange

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
        chosen=_texts(list(seen.chosen)),
        chosen_calibrators=_texts(list(seen.chosen.values())),
        chosen_for=np.array(seen.chosen_for),
        chosen_record=np.array(json.dumps(codec.plain(seen.record) if seen.record is not None else None)),
        tensors=_texts(tensors),
        low=np.array([item.low for item in found], np.float64),
        high=np.array([item.high for item in found], np.float64),
        amax=np.array([item.amax for item in found], np.float64),
        calibrators=_texts([item.calibrator for item in found]),
        weights=_texts(weights),
        weight_calibrators=_texts([ranges.weights[name].calibrator for name in weights]),
        blocks=_texts(list(ranges.blocks)),
        block_sizes=np.array([item.block for item in ranges.blocks.values()], np.int64),
        block_inputs=np.array([item.inputs for item in ranges.blocks.values()], np.int64),
        **dict(_arrays(ranges)),
    )


def _arrays(ranges: Ranges) -> Iterator[tuple[str, Array]]:
    for place, found in enumerate(ranges.weights.values()):
        yield f"weight_{place}", found.amax
        if found.codes is not None:
            yield f"codes_{place}", found.codes
        if found.shift is not None:
            yield f"shift_{place}", found.shift
    for place, blocks in enumerate(ranges.blocks.values()):
        yield f"block_scale_{place}", blocks.scale
        if blocks.zero is not None:
            yield f"block_zero_{place}", blocks.zero
        if blocks.codes is not None:
            yield f"block_codes_{place}", blocks.codes


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
        layers = saved["weights"].tolist()
        found_by = saved["weight_calibrators"].tolist() if "weight_calibrators" in saved else [""] * len(layers)
        weights = {
            name: WeightRange(
                amax=saved[f"weight_{place}"],
                calibrator=calibrator,
                codes=saved.get(f"codes_{place}"),
                shift=saved.get(f"shift_{place}"),
            )
            for place, (name, calibrator) in enumerate(zip(layers, found_by, strict=True))
        }
        columns = [saved[name].tolist() for name in ("blocks", "block_sizes", "block_inputs") if name in saved]
        blocks = {
            name: BlockRange(
                block=size,
                inputs=inputs,
                scale=saved[f"block_scale_{place}"],
                zero=saved.get(f"block_zero_{place}"),
                codes=saved.get(f"block_codes_{place}"),
            )
            for place, (name, size, inputs) in enumerate(zip(*columns, strict=True))
        }
    except (DataError, KeyError, TypeError, ValueError) as error:
        said = error.message if isinstance(error, DataError) else str(error)
        raise QuantizeError(f"cannot be read ({said})", where=str(path), hint="build again with --force") from error
    return Ranges(tensors=tensors, weights=weights, blocks=blocks)


def read_observed(path: Path, key: str) -> Observed | None:
    """Read what an earlier calibration saw; None where there is none of this key."""
    try:
        saved = archive.read_all(path)
        if str(saved["key"]) != key:
            return None
        names = saved["seen_tensors"].tolist()
        record = foreign.parsed(json.loads, str(saved["chosen_record"]))
        kept = zip(saved["kept_tensors"].tolist(), saved["kept_calibrators"].tolist(), strict=True)
        return Observed(
            low=dict(zip(names, saved["seen_low"].tolist(), strict=True)),
            high=dict(zip(names, saved["seen_high"].tolist(), strict=True)),
            amax=dict(zip(kept, saved["kept_amax"].tolist(), strict=True)),
            chosen=dict(zip(saved["chosen"].tolist(), saved["chosen_calibrators"].tolist(), strict=True)),
            chosen_for=str(saved["chosen_for"]),
            record=None if record is None else codec.build(RepairRecord, record),
        )
    except (DataError, RecipeError, KeyError, TypeError, ValueError):
        return None


def _texts(values: list[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.str_]]:
    return np.array(values, np.str_) if values else np.zeros(0, "U1")
