# ruff: noqa: E501 - a table of protobuf text, one model a line
"""Names, backends, versions and the files that are loaded."""

from __future__ import annotations

from oracle_matrix.models import MODEL_PY, ONE, Case, python, step


def files() -> dict[str, Case]:
    """Return the models by name."""
    more = {
        "runtime.right": 'runtime: "libtriton_python.so"',
        "runtime.model_py": 'runtime: "model.py"',
        "runtime.outside": 'runtime: "../other.so"',
        "runtime.absolute": 'runtime: "/tmp/other.so"',
        "runtime.none": 'runtime: "libnone.so"',
        "version_policy.latest": "version_policy { latest { num_versions: 1 } }",
        "version_policy.latest_zero": "version_policy { latest { num_versions: 0 } }",
        "version_policy.all": "version_policy { all { } }",
        "version_policy.specific": "version_policy { specific { versions: [ 1 ] } }",
        "version_policy.gone": "version_policy { specific { versions: [ 7 ] } }",
        "version_policy.one_gone": "version_policy { specific { versions: [ 1, 7 ] } }",
        "version_policy.none_named": "version_policy { specific { } }",
        "version_policy.empty": "version_policy { }",
        "decoupled.right": "model_transaction_policy { decoupled: true }",
        "decoupled.cached": "model_transaction_policy { decoupled: true } response_cache { enable: true }",
        "cache.on": "response_cache { enable: true }",
        "cache.off": "response_cache { enable: false }",
        "optimization.priority": "optimization { priority: PRIORITY_MAX }",
        "optimization.pinned": "optimization { input_pinned_memory { enable: false } }",
        "optimization.eager": "optimization { eager_batching: true gather_kernel_buffer_threshold: 1 }",
        "optimization.graphs": "optimization { cuda { graphs: true } }",
        "parameters.some": 'parameters { key: "k" value: { string_value: "v" } }',
        "parameters.environment": 'parameters { key: "EXECUTION_ENV_PATH" value: { string_value: "/none.tar.gz" } }',
        "metric_tags.some": 'metric_tags { key: "a" value: "b" }',
        "operations.library": 'model_operations { op_library_filename: "none.so" }',
        "agents.unknown": 'model_repository_agents { agents [ { name: "none" } ] }',
        "default_model_filename.gone": 'default_model_filename: "other.py"',
        "cc_model_filenames.gone": 'cc_model_filenames { key: "9.0" value: "none.py" }',
        "model_metrics.right": 'model_metrics { metric_control [ { metric_identifier { family: "nv_x" } histogram_options { buckets: [ 1 ] } } ] }',
        "field.misspelt": "max_batchsize: 3",
        "field.twice": "max_batch_size: 2",
        "field.unknown_enum": "optimization { priority: PRIORITY_LOW }",
        "field.bracket": "input [",
        "platform.python": 'platform: "python"',
        "platform.other": 'platform: "tensorrt_plan"',
        "platform.unknown": 'platform: "made_up"',
        "ensemble_scheduling.beside_backend": f"ensemble_scheduling {{ step [ {{ {step('sound')} }} ] }}",
    }
    cases = {name: python(ONE + text) for name, text in more.items()}
    cases["name.same"] = python('name: "name.same"\n' + ONE)
    cases["name.other"] = python('name: "another"\n' + ONE)
    cases["default_model_filename.there"] = Case(
        text=ONE + 'default_model_filename: "other.py"',
        files={"1/other.py": MODEL_PY.replace("COMPLETE", "pass").encode()},
    )
    cases["backend.none"] = python(ONE.replace('backend: "python"\n', ""))
    cases["backend.unknown"] = python(ONE.replace('"python"', '"made_up"'))
    cases["backend.empty_config"] = python("")
    cases["config.byte_order_mark"] = python("\ufeff" + ONE)
    cases["config.comment"] = python("# nothing\n" + ONE)
    cases["version.none"] = Case(text=ONE)
    cases["version.leading_zero"] = python(ONE, version="01")
    cases["version.word"] = python(ONE, version="first")
    cases["version.two"] = Case(text=ONE, files={**python(ONE).files, **python(ONE, version="3").files})
    cases["version.empty"] = Case(text=ONE, folders=("1",))
    cases["version.older_is_empty"] = Case(text=ONE, files=python(ONE, version="2").files, folders=("1",))
    cases["model_py.no_class"] = Case(text=ONE, files={"1/model.py": b"x = 1\n"})
    cases["model_py.syntax"] = Case(text=ONE, files={"1/model.py": b"class TritonPythonModel(:\n"})
    cases["model_py.no_execute"] = Case(text=ONE, files={"1/model.py": b"class TritonPythonModel:\n    pass\n"})
    cases["model_py.import"] = Case(
        text=ONE, files={"1/model.py": b"import none_such\nclass TritonPythonModel:\n    def execute(self, r): ...\n"}
    )
    cases["stray.file"] = python(ONE, **{"notes.txt": b"hello"})
    cases["stray.folder"] = Case(text=ONE, files=python(ONE).files, folders=("old",))
    return cases
