"""CPU energy from a powercap folder as Linux has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder.core import files
from repo_builder.measure.load.rapl import Packages


def counter(root: Path, name: str, energy_uj: int, largest_uj: int = 1_000_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    # whole at any moment, as the kernel's is: a meter may be reading it
    files.write_text(folder / "max_energy_range_uj", f"{largest_uj}\n")
    files.write_text(folder / "energy_uj", f"{energy_uj}\n")
    return folder


def test_packages_are_added_up_without_what_is_part_of_them_and_over_a_turn_of_the_counter(tmp_path: Path) -> None:
    counter(tmp_path, "intel-rapl:0", 999_000_000)
    counter(tmp_path, "intel-rapl:1", 5_000_000)
    core = counter(tmp_path, "intel-rapl:0:0", 0)
    packages = Packages(tmp_path)
    assert (packages.missing, packages.joules()) == ("", 0.0)
    counter(tmp_path, "intel-rapl:0", 1_000_000)  # it began anew
    counter(tmp_path, "intel-rapl:1", 6_500_000)
    (core / "energy_uj").write_text("700000000\n")
    assert packages.joules() == pytest.approx(2.0 + 1.5)
    assert packages.joules() == pytest.approx(3.5)


def test_what_is_not_there_or_not_readable_is_none_and_said(tmp_path: Path) -> None:
    none = Packages(tmp_path / "none")
    assert none.joules() is None
    assert "no energy counter" in none.missing
    folder = counter(tmp_path, "intel-rapl:0", 1)
    (folder / "energy_uj").unlink()
    unreadable = Packages(tmp_path)
    assert unreadable.joules() is None
    assert "energy_uj cannot be read (No such file" in unreadable.missing
    counter(tmp_path, "intel-rapl:0", 1)
    lost = Packages(tmp_path)
    (folder / "energy_uj").write_text("?")
    assert lost.joules() is None
    assert lost.joules() is None
    assert "broke off" in lost.missing
