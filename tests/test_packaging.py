"""An installed wheel finds what a checkout finds: templates, recipes, weights, data."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="needs hatchling to build the wheel without an index")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_everything_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder, pattern in (("recipes", "*.toml"), ("weights", "*.safetensors"), ("data", "*.npz")):
        for item in (ROOT / "repo_builder" / folder).glob(pattern):
            assert f"repo_builder/{folder}/{item.name}" in names
    for folder in ("templates", "deploy"):
        for item in (ROOT / folder).rglob("*"):
            if item.is_file():
                assert f"repo_builder/_assets/{item.relative_to(ROOT).as_posix()}" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"repo_builder"}
    assert wheel.stat().st_size < 8_000_000


@pytest.mark.slow
def test_an_installed_wheel_finds_its_assets(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, whose only other packages are this one's; run from another folder."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv/bin/python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    others = [item for item in sys.path if "site-packages" in item]
    # appended: the wheel's own modules come first, and the editable checkout's finder is not run
    code = f"""
import sys
sys.path.extend({others!r})
import repo_builder
from pathlib import Path
from repo_builder import datasets, recipes
from repo_builder.core import assets
from repo_builder.repository import config
assert Path(repo_builder.__file__).is_relative_to({str(site)!r}), repo_builder.__file__
assert (assets.template_folder() / "config.pbtxt.j2").is_file()
assert assets.template_folder().is_relative_to({str(site)!r})
assert any(assets.deploy_folder().rglob("*.txt"))
for name in recipes.built_in():
    recipe = recipes.load(name)
    if (recipe.model.checkpoint or "").startswith("package:"):
        assert assets.packaged("weights", recipe.model.checkpoint.removeprefix("package:")).is_file()
        assert len(datasets.load(recipe.data, inputs=recipe.model.inputs, seed=0).split("test"))
print("found")
"""
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "found"
