"""Tests mirror the package: those of ``core/files.py`` stand in ``core/test_files.py``.

What is tested beside its neighbours, or through what uses it, is written down here by the file that does it. A new
module gets a file of its own; a row is for one that cannot be looked at alone, and goes when its module gets one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import conftest

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "repo_builder"
_SMALL = 40  # lines up to which a module is too little to be looked at alone
# file of tests → the modules that it tests beside the one of its own path
ELSEWHERE: dict[str, str] = {
    "test_face.py": "__init__ api/looking api/measuring api/places api/precisions api/serving",
    "cli/test_cli.py": "cli/__init__ cli/bugs",
    "cli/test_cli_perf.py": "cli/perf_asked cli/perf_options",
    "cli/test_cli_serve.py": "cli/serve_detached flows/serving",
    "cli/test_cli_help.py": "cli/server_options",
    "cli/test_cli_tune.py": "api/tuning",
    "cli/test_cli_validate.py": "flows/validating",
    "cli/test_cli_inspect.py": "compile/inspection flows/inspecting",
    "compile/test_compile.py": "compile/__init__",
    "compile/tensorrt/test_backend.py": (
        "compile/tensorrt/plan serve/backends/tensorrt/engine serve/backends/tensorrt/lane"
    ),
    "compile/tensorrt/test_backend_model.py": (
        "core/device serve/backends/tensorrt/memory serve/backends/tensorrt/model serve/backends/tensorrt/slots"
    ),
    "compile/tensorrt/test_build.py": "compile/tensorrt/log",
    "gpu/test_gpu_compile.py": "compile/tensorrt/pieces compile/tensorrt/speed compile/tensorrt/target",
    "compile/onnxruntime/test_speed.py": "compile/timed",
    "core/test_artifacts.py": "core/details core/records",
    "core/test_batchable.py": "core/sessions core/signatures",
    "core/test_recipe.py": (
        "core/recipe/__init__ core/recipe/finetune core/recipe/precision core/recipe/repair core/recipe/search"
        " core/recipe/serving core/recipe/sources core/recipe/targets"
    ),
    "datasets/test_built_in_data.py": "datasets/__init__",
    "datasets/test_encoded.py": "core/encoded",
    "datasets/test_damaged_data.py": "core/archive",
    "datasets/test_user_data.py": "datasets/folder datasets/labels datasets/source datasets/table datasets/user",
    "export/test_torch_onnx.py": "export/comparing export/marks export/naming export/plain export/tracing",
    "export/test_capturing.py": "export/captured_graph",
    "flows/build/test_paying.py": "flows/build/weighed",
    "flows/build/test_paying_plans.py": "flows/build/making",
    "flows/build/test_build.py": (
        "flows/build/__init__ flows/build/exporting flows/build/forms flows/build/lowering flows/build/options"
    ),
    "flows/build/test_joining.py": "flows/build/piping flows/build/trying",
    "flows/init/test_init.py": (
        "flows/init/__init__ flows/init/facts flows/init/onnx_facts flows/init/render flows/init/torch_facts"
    ),
    "flows/test_layers.py": "cli/layers",
    "flows/search/test_search.py": (
        "flows/search/__init__ flows/search/accuracy flows/search/bench flows/search/choices flows/search/front"
        " flows/search/hunt flows/search/mending flows/search/seen flows/search/sensing flows/search/trials"
        " flows/search/tries results/sensing"
    ),
    "flows/perf/test_perf.py": ("flows/perf/accuracy flows/perf/options flows/perf/run measure/judge/explain"),
    "flows/tune/test_tune.py": (
        "flows/tune/__init__ flows/tune/bench flows/tune/hosts flows/tune/options flows/tune/run"
    ),
    "measure/judge/test_ladder.py": "measure/judge/limits",
    "measure/test_measure_kinds.py": "measure/load/abilities measure/wire/grpc_stream",
    "measure/test_measure_parts.py": (
        "measure/load/merging measure/load/outputs measure/load/records measure/load/search measure/load/server_stats"
        " measure/load/windows"
    ),
    "measure/test_measure_triton.py": (
        "measure/load/session measure/load/worker measure/wire/control measure/wire/model measure/wire/shm"
        " measure/wire/verify"
    ),
    "measure/wire/test_transport.py": "measure/wire/grpc measure/wire/http1 measure/wire/http2",
    "models/test_architectures.py": "models/jsc models/vgg",
    "models/test_models_create.py": "models/__init__",
    "models/test_finetuning.py": "models/distance",
    "models/test_training.py": "models/parts models/resuming",
    "pipeline/test_chain.py": "core/recipe/pipeline pipeline/around pipeline/parts pipeline/scored",
    "pipeline/test_graph.py": "pipeline/here pipeline/running",
    "pipeline/test_shipping.py": (
        "pipeline/shipped/call_function pipeline/shipped/decode_image pipeline/shipped/model"
        " pipeline/shipped/tokenize_text pipeline/steps/call pipeline/steps/decode_image pipeline/steps/tokenize"
    ),
    "pipeline/test_steps.py": (
        "core/recipe/steps pipeline/form pipeline/steps/boxes pipeline/steps/normalise pipeline/steps/resize"
        " pipeline/writer"
    ),
    "quantize/placement/test_place.py": (
        "quantize/placement/__init__ quantize/placement/choose quantize/placement/index quantize/placement/layers"
        " quantize/placement/lower quantize/placement/placed quantize/placement/profiles/onnxruntime_cpu"
        " quantize/placement/profiles/tensorrt"
        " quantize/placement/table quantize/placement/weights quantize/placement/write"
        " quantize/placement/write_layer quantize/placement/writer"
    ),
    "quantize/finetune/test_graph.py": "quantize/finetune/fake quantize/finetune/rounding",
    "quantize/finetune/test_operators.py": "quantize/finetune/moving quantize/finetune/pooling",
    "quantize/test_calibrate.py": (
        "quantize/finders quantize/observe quantize/plugged quantize/pytorch_quantization quantize/ranges"
        " quantize/store"
    ),
    "quantize/test_noise.py": "quantize/table",
    "compile/tensorrt/test_strongly_typed.py": "quantize/placement/profiles/tensorrt",
    "quantize/repair/test_equalize.py": "quantize/repair/chains quantize/repair/linear",
    "quantize/repair/test_repair.py": "quantize/repair/__init__ quantize/repair/protocol",
    "recipes/test_recipes.py": "core/recipe/reading recipes/__init__",
    "report/test_report_page.py": "report/charts report/csv report/page report/svg",
    "report/test_precision_page.py": "report/spots",
    "report/test_report_terminal.py": (
        "report/numbers report/terminal report/verdict results/__init__ results/levels results/run results/schema"
        " results/scores"
    ),
    "report/test_tune_page.py": "report/tune_terminal report/tuned results/tuning",
    "repository/test_config.py": "repository/protobuf repository/spec",
    "repository/test_plans.py": "repository/checks/plans",
    "repository/test_validate.py": (
        "repository/checks/batching repository/checks/data repository/checks/ensemble repository/checks/findings"
        " repository/checks/folder repository/checks/onnx_settings repository/checks/python_model"
        " repository/checks/sequences repository/checks/settings repository/checks/target repository/checks/tensors"
        " repository/checks/versions repository/checks/warmup"
    ),
    "serve/backends/test_onnxruntime_model.py": (
        "serve/backends/onnxruntime/feeds serve/backends/onnxruntime/model serve/backends/onnxruntime/settings"
        " serve/backends/onnxruntime/signature"
    ),
    "serve/backends/test_sequences.py": "serve/backends/onnxruntime/states",
    "serve/run/test_embedded.py": "serve/__init__ serve/run/assembly serve/run/launch serve/run/server serve/run/stubs",
    "serve/run/test_configs.py": "serve/run/choices",
    "serve/run/test_keeper.py": "serve/run/job serve/run/revival",
}
ROWS = {module: file for file, modules in ELSEWHERE.items() for module in modules.split()}


def own_file(module: str) -> Path:
    """Where the tests of a module stand; those of a verb bear the verb's name behind ``cli``."""
    place = Path(module)
    name = f"test_cli_{place.name}.py" if place.parts[0] == "cli" else f"test_{place.name}.py"
    return TESTS / place.parent / name


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_has_a_file_of_tests(path: Path) -> None:
    module = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if len(path.read_text(encoding="utf-8").splitlines()) > _SMALL and not own_file(module).exists():
        wanted = own_file(module).relative_to(TESTS)
        assert module in ROWS, f"write tests/{wanted}, or say in ELSEWHERE where {module} is tested"


@pytest.mark.parametrize("file", ELSEWHERE)
def test_a_row_is_about_what_is_there(file: str) -> None:
    assert (TESTS / file).is_file()
    for module in ELSEWHERE[file].split():
        assert (PACKAGE / module).with_suffix(".py").is_file(), module
        assert not own_file(module).exists(), f"{module} has a file of its own: its row can go"


def test_what_runs_together_is_there() -> None:
    """A file that was renamed would run anywhere, and import its library once more."""
    for name, files in conftest._LIBRARIES.items():
        assert name in conftest._TOGETHER
        for file in files:
            assert (TESTS.parent / file).is_file(), file
