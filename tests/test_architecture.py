"""The gates that keep the house in order: who imports whom, and what a light verb may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "repo_builder"
# Imports run one way, down this list. Rooms on one line are stages of one rank and never import each other.
RANKS = (
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"api"},
    {"flows"},
    {"models", "datasets", "quantize", "export", "compile", "pipeline", "repository", "serve", "measure", "report"},
    {"results", "recipes"},
    {"core"},
)
STAGES = RANKS[5]
# Inside a stage of several rooms: each imports only those after it.
INNER = {"measure": ("load", "judge", "wire")}
HEAVY = ("torch", "tensorrt", "onnxruntime", "modelopt", "pytorch_quantization", "cuda", "sklearn", "pytriton")
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def is_module(name: str) -> bool:
    place = PACKAGE.parent.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def imports(path: Path) -> Iterator[str]:
    """Every module of this package that a file imports, anywhere in it, as a path below the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if is_module(name) else node.module for name in inside]
        else:
            continue
        yield from (name.removeprefix("repo_builder.") for name in found if name.startswith("repo_builder."))


def rank(name: str) -> int:
    return next(place for place, rooms in enumerate(RANKS) if name in rooms)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    own = room(path)
    for name in imports(path):
        other = name.partition(".")[0]
        if other != own and (PACKAGE / other).exists():
            assert rank(other) > rank(own), f"{own} imports {name}"


@pytest.mark.parametrize("stage", INNER)
def test_rooms_of_a_stage_import_one_way(stage: str) -> None:
    order = INNER[stage]
    for place, inner in enumerate(order):
        for path in (PACKAGE / stage / inner).rglob("*.py"):
            above = {f"{stage}.{name}" for name in order[:place]}
            assert not {".".join(name.split(".")[:2]) for name in imports(path)} & above, path


def test_no_two_modules_import_each_other() -> None:
    """Imports at the top of modules have no circle; one inside a function or for type checkers alone counts too."""
    arrows = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): set(imports(path))
        for path in MODULES
    }
    known = set(arrows)
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name in done:
            return
        for other in sorted(arrows[name] & known - {name}):
            walk(other, (*way, name))
        done.add(name)

    for name in sorted(known):
        walk(name, ())


@pytest.mark.parametrize("path", sorted((PACKAGE / "serve" / "backends").rglob("*.py")), ids=lambda path: path.name)
def test_code_inside_triton_imports_core_alone(path: Path) -> None:
    """A stub imports it for every instance: nothing of the launcher, the recipes or the flows comes along."""
    assert {name.partition(".")[0] for name in imports(path)} <= {"core", "serve"}
    assert not any(name.startswith("serve.run") for name in imports(path))


# What reads JSON that repo-builder, Triton or a library wrote for it a moment ago.
OWN_JSON = {
    "compile/onnxruntime/node_times.py",
    "compile/tensorrt/plan.py",
    "models/checkpoints.py",
    "pipeline/shipped/model.py",
    "serve/backends/onnxruntime/model.py",
    "serve/backends/tensorrt/model.py",
    "serve/run/job.py",
}


def test_foreign_json_is_read_by_the_codec_whose_errors_are_of_one_kind() -> None:
    """``json.loads`` raises RecursionError on deep nesting, which nobody catches."""
    found = {item.relative_to(PACKAGE).as_posix() for item in MODULES if "json.loads(" in item.read_text("utf-8")}
    assert found == OWN_JSON


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_fits_on_a_few_screens(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 320


def blocked(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which the heavy libraries cannot be imported."""
    guard = f"""
import sys
class Gate:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise AssertionError("imports " + name)
sys.meta_path.insert(0, Gate())
"""
    return subprocess.run(
        [sys.executable, "-c", guard + code, *arguments], capture_output=True, text=True, timeout=600, cwd=cwd
    )


@pytest.mark.parametrize(
    "name",
    sorted(
        STAGES
        | {
            "flows.build",
            "flows.init",
            "flows.layers",
            "flows.perf",
            "flows.search",
            "flows.tune",
            "flows.validating",
            "api",
            "recipes",
            "results",
            "core",
        }
    ),
)
def test_importing_a_stage_loads_nothing_heavy(name: str) -> None:
    done = blocked(f"import repo_builder.{name}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "verb",
    [
        "",
        "build",
        "compile",
        "config",
        "init",
        "inspect",
        "layers",
        "perf",
        "recipes",
        "sense",
        "serve",
        "train",
        "tune",
        "validate",
    ],
)
def test_help_loads_nothing_heavy_and_teaches(verb: str) -> None:
    done = blocked("from repo_builder.cli import main; main()", *([verb] if verb else []), "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert "repo-builder" in done.stdout.partition("\n")[2], "the help shows an example"
    assert "\\b" not in done.stdout, "a raw docstring hides click's line-keeping mark"


def test_light_verbs_run_without_the_heavy_libraries(tmp_path: Path) -> None:
    main = "from repo_builder.cli import main; main()"
    (tmp_path / "model_repository").mkdir()
    done = blocked(main, "validate", "model_repository", cwd=tmp_path)
    assert done.returncode == 9, done.stderr
    done = blocked(main, "config", "missing.onnx", cwd=tmp_path)
    assert "error:" in done.stderr
    assert "missing.onnx" in done.stderr
    assert "imports" not in done.stderr
    done = blocked(main, "perf", "vgg", "--url", "127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 11, done.stderr
    assert "imports" not in done.stderr


def test_help_takes_less_than_0_3_seconds_of_cpu() -> None:
    """The least of five runs: the machine's other work only ever adds."""
    code = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "repo_builder", "--help"], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    assert min(runs) < 0.3
