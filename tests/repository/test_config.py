from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from repo_builder.core import files
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.errors import RepositoryError
from repo_builder.core.recipe import Recipe, reading
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.repository import config, protobuf
from repo_builder.repository.config import Accelerator, ModelConfigSpec

MakeEngine = Callable[..., EngineArtifact]

# --- render → protobuf → compare ------------------------------------------------------------------------------------

_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_dims = st.lists(st.one_of(st.just(-1), st.integers(1, 2**40)), max_size=4).map(tuple)


def _tensors(least: int = 1) -> st.SearchStrategy[tuple[TensorSpec, ...]]:
    tensor = st.builds(TensorSpec, name=_names, dtype=st.sampled_from(DType), shape=_dims)
    return st.lists(tensor, min_size=least, max_size=5, unique_by=lambda item: item.name).map(tuple)


@st.composite
def specs(draw: st.DrawFn) -> ModelConfigSpec:
    batch = draw(st.integers(0, 4096))
    inputs, outputs = draw(_tensors()), draw(_tensors())
    sizes = st.lists(st.integers(1, max(batch, 1)), max_size=3).map(tuple)
    words = st.dictionaries(_names, st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=3)
    kind = draw(st.sampled_from(["cpu", "gpu"]))
    together = batch > 0 and draw(st.booleans())
    accelerators = st.lists(st.builds(Accelerator, name=_names, parameters=words), max_size=2).map(tuple)
    return ModelConfigSpec(
        name=draw(st.from_regex(r"[\w.:+@-]*[a-z][\w.:+@-]*", fullmatch=True).filter(lambda text: len(text) < 60)),
        backend=draw(_names),
        platform=draw(st.one_of(st.just(""), _names)),
        max_batch_size=batch,
        inputs=inputs,
        outputs=outputs,
        labels=draw(st.sampled_from([None, *(item.name for item in outputs)])),
        dynamic_batching=together,
        preferred_batch_sizes=draw(sizes) if together else (),
        max_queue_delay_us=draw(st.integers(0, 2**60)),
        instance_count=draw(st.integers(1, 9)),
        instance_kind=kind,
        profiles=draw(st.lists(st.integers(0, 9).map(str), max_size=3).map(tuple)),
        warmup_batch_sizes=draw(sizes),
        warmup_shapes={item.name: tuple(abs(size) for size in item.shape) for item in inputs if -1 in item.shape},
        keep_versions=draw(st.integers(1, 99)),
        response_cache=draw(st.booleans()),
        parameters=draw(words),
        accelerators=draw(accelerators) if kind == "gpu" else (),
        notes=draw(st.lists(_names, max_size=2).map(tuple)),
    )


@settings(max_examples=100, deadline=None)
@given(specs())
def test_any_spec_survives_the_template(spec: ModelConfigSpec) -> None:
    message = config.parse_text(config.render(spec), "here")  # render itself compares with protobuf.build
    assert (message.name, message.max_batch_size) == (spec.name, spec.max_batch_size)
    assert [item.name for item in message.input] == [item.name for item in spec.inputs]
    assert [tuple(item.dims) for item in message.output] == [item.shape or (1,) for item in spec.outputs]
    assert {key: value.string_value for key, value in message.parameters.items()} == spec.parameters
    assert [item.batch_size for item in message.model_warmup] == list(spec.warmup_batch_sizes)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quote_is_undone_by_the_parser(text: str) -> None:
    message = config.parse_text(f"name: {protobuf.quote(text)}", "here")
    assert message.name == text


def test_a_template_that_says_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _spec()
    built = protobuf.build(spec)
    built.max_batch_size += 1
    monkeypatch.setattr(protobuf, "build", lambda _: built)
    with pytest.raises(RepositoryError, match="max_batch_size is '8' instead of '9'"):
        config.render(spec)


def test_difference_names_the_field() -> None:
    one = model_config_pb2.ModelConfig(name="a")
    assert protobuf.difference(one, model_config_pb2.ModelConfig(name="a")) == ""
    assert protobuf.difference(one, model_config_pb2.ModelConfig(name="b")) == "name is 'a' instead of 'b'"


# --- specs that make no sense ---------------------------------------------------------------------------------------


def _spec(**changes: Any) -> ModelConfigSpec:
    made = ModelConfigSpec(
        name="m",
        backend="onnxruntime",
        max_batch_size=8,
        inputs=(TensorSpec(name="x", dtype=DType.FP32, shape=(3, -1)),),
        outputs=(TensorSpec(name="y", dtype=DType.INT64, shape=()),),
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batch_size": -1}, "must not be negative"),
        ({"inputs": ()}, "at least one input"),
        ({"inputs": (TensorSpec(name="x", dtype=DType.FP32, shape=(0,)),)}, "at least 1, or -1"),
        ({"outputs": (TensorSpec(name="y", dtype=DType.FP32, shape=(1,)),) * 2}, "the same name"),
        ({"preferred_batch_sizes": (9,)}, r"between 1 and max_batch_size \(8\)"),
        ({"warmup_batch_sizes": (9,), "warmup_shapes": {"x": (3, 1)}}, "warm-up batch sizes"),
        ({"warmup_batch_sizes": (1,)}, r"concrete shape for the input x fp32\[3, -1\]"),
        ({"warmup_batch_sizes": (1,), "warmup_shapes": {"x": (4, 1)}}, "concrete shape"),
        ({"max_batch_size": 0, "dynamic_batching": True}, "needs a max_batch_size"),
        ({"instance_count": 0}, "at least one instance"),
        ({"keep_versions": 0}, "at least one version"),
        ({"max_queue_delay_us": -1}, "queue delay"),
        ({"accelerators": (Accelerator(name="cuda"),)}, "on the GPU only"),
    ],
)
def test_what_triton_would_refuse_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RepositoryError, match=message):
        config.render(_spec(**changes))


def test_one_number_a_sample_is_reshaped_only_where_the_model_batches() -> None:
    batched = config.parse_text(config.render(_spec()), "here").output[0]
    whole = config.parse_text(config.render(_spec(max_batch_size=0)), "here").output[0]
    assert (list(batched.dims), batched.HasField("reshape")) == ([1], True)
    assert (list(whole.dims), whole.HasField("reshape")) == ([1], False)


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ("max_batchsize: 1", "here:1:1", "max_batch_size"),
        ('name: "m"\ninput [ { nme: "x" } ]', "here:2:11", "name"),
        ("input [", "here:1:8", None),
        ("platform: 3", "here:1:11", None),
        ("input { data_type: TYPE_FLOAT }", "here:1:20", None),
    ],
)
def test_a_text_that_is_no_configuration_is_named_by_line_and_column(text: str, where: str, hint: str | None) -> None:
    with pytest.raises(RepositoryError) as caught:
        config.parse_text(text, "here")
    assert caught.value.where == where
    assert "\n" not in str(caught.value)
    assert hint is None or hint in (caught.value.hint or "")


# --- from an engine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_an_engine_says_which_build_it_is(make_engine: MakeEngine, target: str) -> None:
    engine = make_engine(target=target)
    said = config.parse_text(config.render(config.from_engine(engine)), "toy").parameters
    assert {key: item.string_value for key, item in said.items() if key.startswith(config.IDENTITY)} == {
        "repo_builder_engine_sha256": files.sha256_of(engine.model),
        "repo_builder_build_key": engine.key,
        "repo_builder_recipe": "toy",
    }


def test_an_onnxruntime_engine_says_threads_and_labels(make_engine: MakeEngine) -> None:
    spec = config.from_engine(make_engine(repository={"preferred_batch_sizes": [4], "warmup_batch_sizes": [1, 64]}))
    assert (spec.backend, spec.instance_kind, spec.labels) == ("onnxruntime", "cpu", "y")
    assert {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}.items() <= spec.parameters.items()
    assert (spec.preferred_batch_sizes, spec.warmup_batch_sizes, spec.dynamic_batching) == ((4,), (1, 64), True)


def test_thread_counts_of_zero_are_left_to_onnx_runtime(make_engine: MakeEngine) -> None:
    engine = make_engine(compile={"onnxruntime": {"intra_op_thread_count": 0, "inter_op_thread_count": 0}})
    assert all(key.startswith(config.IDENTITY) for key in config.from_engine(engine).parameters)


def test_an_engine_that_takes_less_than_the_recipe_asks_bounds_the_batches(make_engine: MakeEngine) -> None:
    tables = {"repository": {"preferred_batch_sizes": [4, 64], "warmup_batch_sizes": [1, 64]}}
    spec = config.from_engine(make_engine(details={"max_batch_size": 8}, **tables))
    assert (spec.max_batch_size, spec.preferred_batch_sizes, spec.warmup_batch_sizes) == (8, (4,), (1,))


def test_warm_up_that_is_not_asked_for_breaks_no_smaller_max_batch_size(make_engine: MakeEngine) -> None:
    assert config.from_engine(make_engine()).warmup_batch_sizes == (1,)
    assert config.from_engine(make_engine(repository={"warmup_batch_sizes": []})).warmup_batch_sizes == ()
    plan = make_engine(target="tensorrt", details={"profiles": _profiles(1, 8, 8) + _profiles(9, 64, 64)})
    assert config.from_engine(plan).warmup_batch_sizes == (1, 8, 64)  # its CUDA graphs are captured of these


def test_no_built_in_recipe_asks_for_preferred_sizes_or_larger_warm_up() -> None:
    for name in reading.built_in():
        repository = Recipe.load(name).repository
        assert (repository.preferred_batch_sizes, repository.warmup_batch_sizes) == ((), None), name


def test_without_batching_dims_are_whole(make_engine: MakeEngine) -> None:
    spec = config.from_engine(make_engine(details={"max_batch_size": 0}))  # the file's first dimension is 1
    assert (spec.inputs[0].shape, spec.outputs[0].shape, spec.dynamic_batching) == ((1, 4), (1, 4), False)
    plan = make_engine(target="tensorrt", details={"max_batch_size": 0, "profiles": _profiles(2, 2, 2)})
    assert config.from_engine(plan).inputs[0].shape == (2, 4)
    plan = make_engine(target="tensorrt", details={"max_batch_size": 0, "profiles": _profiles(1, 2, 4)})
    assert config.from_engine(plan).inputs[0].shape == (-1, 4)


def _profiles(*bounds: int) -> list[dict[str, dict[str, list[int]]]]:
    return [{"x": {key: [size, 4] for key, size in zip(("min", "opt", "max"), bounds, strict=True)}}]


def test_several_profiles_are_all_named(make_engine: MakeEngine) -> None:
    one = make_engine(target="tensorrt", details={"profiles": _profiles(1, 8, 64)})
    two = make_engine(target="tensorrt", details={"profiles": _profiles(1, 8, 64) + _profiles(1, 1, 1)})
    assert config.from_engine(one).profiles == ()
    assert config.from_engine(two).profiles == ("0", "1")
    assert config.from_engine(two).instance_kind == "gpu"
    assert config.from_engine(two).parameters["FORCE_CPU_ONLY_INPUT_TENSORS"] == "no"


def test_dynamic_inputs_are_warmed_up_at_the_size_the_recipe_tunes_for(make_engine: MakeEngine) -> None:
    model = {
        "source": "jsc",
        "inputs": [{"name": "x", "dtype": "fp32", "shape": [3, -1]}],
        "outputs": [{"name": "y", "dtype": "fp32", "shape": [4]}],
    }
    bounds = {"min": [3, 1], "opt": [3, 7], "max": [3, 9]}
    tuned = make_engine(model=model, compile={"tensorrt": {"profiles": [{"shapes": {"x": bounds}}]}})
    spec = config.from_engine(tuned)
    assert (spec.warmup_batch_sizes, spec.warmup_shapes) == ((1,), {"x": (3, 7)})
    plan = make_engine(
        target="tensorrt",
        model=model,
        details={"profiles": [{"x": {"min": [1, 3, 1], "opt": [8, 3, 5], "max": [64, 3, 9]}}]},
    )
    assert config.from_engine(plan).warmup_shapes == {"x": (3, 5)}
    untuned = config.from_engine(make_engine(model=model))
    assert untuned.warmup_batch_sizes == ()
    assert "no warm-up: 'x'" in config.render(untuned)


def test_labels_go_to_the_output_with_one_element_a_class(make_engine: MakeEngine) -> None:
    def outputs(*shapes: list[int]) -> dict[str, Any]:
        named = [{"name": f"y{place}", "dtype": "fp32", "shape": shape} for place, shape in enumerate(shapes)]
        return {"source": "jsc", "inputs": [{"name": "x", "dtype": "fp32", "shape": [4]}], "outputs": named}

    assert config.from_engine(make_engine(model=outputs([5], [2, 2], [4]))).labels == "y1"
    assert config.from_engine(make_engine(model=outputs([5], [-1, 4]))).labels is None
    for batch, labelled in ((1, "y"), (2, None)):  # without batching, Triton reads a whole output as one sample's
        plan = make_engine(target="tensorrt", details={"max_batch_size": 0, "profiles": _profiles(*[batch] * 3)})
        assert config.from_engine(plan).labels == labelled


def test_accelerators_are_written_as_the_onnxruntime_backend_reads_them(make_engine: MakeEngine) -> None:
    def made(**options: Any) -> Any:
        engine = make_engine(compile={"onnxruntime": options, "tensorrt": {"workspace_mib": 64}})
        return config.parse_text(config.render(config.from_engine(engine)), "here"), engine

    message, engine = made(accelerator="tensorrt", accelerator_precision="int8")
    (accelerator,) = message.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "INT8",
        "max_workspace_size_bytes": str(64 * 2**20),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"trt-engines-toy-{engine.files['model.onnx'][:12]}",
    }
    assert [item.kind for item in message.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_GPU]
    message, _ = made(accelerator="tensorrt", engine_cache=False)
    (accelerator,) = message.optimization.execution_accelerators.gpu_execution_accelerator
    assert set(accelerator.parameters) == {"precision_mode", "max_workspace_size_bytes"}
    message, _ = made(accelerator="cuda")
    (accelerator,) = message.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {})


def test_an_accelerator_on_the_cpu_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(compile={"onnxruntime": {"accelerator": "cuda"}}, repository={"instance_kind": "cpu"})
    with pytest.raises(RepositoryError, match="on the GPU only"):
        config.render(config.from_engine(engine))
