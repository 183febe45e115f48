"""The tensorrt backend in a real Triton: bit for bit what the plan gives, whoever asks for what at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from repo_builder.compile.inspection import ask_engine
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.errors import ServeError
from repo_builder.repository import validate
from repo_builder.repository.checks.findings import Finding

pytestmark = [pytest.mark.server]
MAX_BATCH = 16


@pytest.fixture(scope="module")
def served(
    make_artifact: Callable[..., OnnxArtifact],
    place_plan: Callable[..., EngineArtifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SimpleNamespace]:
    """int8 and wide in two instances, mixed in one, and their plans run here."""
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
    from repo_builder import serve
    from repo_builder.compile.tensorrt.plan import PlanRunner

    repository = tmp_path_factory.mktemp("repository")
    plans = {}
    for name, count in (("int8", 2), ("mixed", 1), ("wide", 2)):
        artifact = make_artifact(name, instance_count=count)
        plans[name] = PlanRunner(place_plan(artifact, repository).model)
    log = repository.parent / "triton.log"
    with serve.start(repository, http_port=0, grpc_port=0, metrics_port=0, log=log) as server:
        server.wait_ready(120)
        yield SimpleNamespace(server=server, plans=plans, log=log, repository=repository)


def client(served: SimpleNamespace) -> Any:
    import tritonclient.grpc as grpc

    return grpc.InferenceServerClient(served.server.grpc_url)


def infer(connection: Any, model: str, values: np.ndarray, *, name: str = "image", dtype: str = "FP32") -> np.ndarray:
    import tritonclient.grpc as grpc

    tensor = grpc.InferInput(name, list(values.shape), dtype)
    tensor.set_data_from_numpy(values)
    result: np.ndarray = connection.infer(model, [tensor]).as_numpy("logits")
    return result


def expected(served: SimpleNamespace, model: str, values: np.ndarray) -> np.ndarray:
    result: np.ndarray = served.plans[model]({"image": values})["logits"]
    return result


@pytest.mark.parametrize("model", ["int8", "mixed"])
def test_every_batch_size_is_bit_equal_to_the_plan(served: SimpleNamespace, images: np.ndarray, model: str) -> None:
    connection = client(served)
    for count in range(1, MAX_BATCH + 1):
        found = infer(connection, model, images[:count])
        np.testing.assert_array_equal(found, expected(served, model, images[:count]))


@pytest.mark.parametrize("model", ["int8", "mixed"])
def test_mixed_batches_at_the_same_time_are_bit_equal(served: SimpleNamespace, images: np.ndarray, model: str) -> None:
    whole = np.concatenate([expected(served, model, images[k : k + 1]) for k in range(len(images))])
    random = np.random.default_rng(5)
    cuts = [(int(start), int(start + random.integers(1, 9))) for start in random.integers(0, 50, 400)]
    connection = client(served)

    def one(cut: tuple[int, int]) -> bool:
        return np.array_equal(infer(connection, model, images[slice(*cut)]), whole[slice(*cut)])

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, cuts))


def test_graphs_were_captured_for_the_warm_up(served: SimpleNamespace) -> None:
    text = served.log.read_text()
    assert "no CUDA graph" not in text
    assert "Input tensors can be both in CPU and GPU" in text


@pytest.mark.filterwarnings("ignore:The cuda:FutureWarning", "ignore:The cuda:DeprecationWarning")
def test_inputs_and_outputs_in_cuda_shared_memory(served: SimpleNamespace, images: np.ndarray) -> None:
    infer_in_cuda_memory(served, "int8", images[:5], expected(served, "int8", images[:5]))


def infer_in_cuda_memory(
    served: SimpleNamespace, model: str, images: np.ndarray, right: np.ndarray, regions: str = "0"
) -> None:
    """Infer several times with input and output in regions of their own, and compare what lies there in the end."""
    shared = pytest.importorskip("tritonclient.utils.cuda_shared_memory", reason="needs tritonclient[cuda]")
    import tritonclient.grpc as grpc

    connection, values = client(served), np.ascontiguousarray(images)
    key = served.server.note.grpc_headers()  # the administration of shared memory is closed to others
    names, sizes = (f"given-{regions}", f"taken-{regions}"), (values.nbytes, right.nbytes)
    given, taken = (shared.create_shared_memory_region(*pair, 0) for pair in zip(names, sizes, strict=True))
    try:
        shared.set_shared_memory_region(given, [values])
        for name, region, size in zip(names, (given, taken), sizes, strict=True):
            connection.register_cuda_shared_memory(name, shared.get_raw_handle(region), 0, size, headers=key)
        tensor, output = grpc.InferInput("image", list(values.shape), "FP32"), grpc.InferRequestedOutput("logits")
        tensor.set_shared_memory(names[0], sizes[0])
        output.set_shared_memory(names[1], sizes[1])
        for _ in range(20):
            connection.infer(model, [tensor], outputs=[output])
        np.testing.assert_array_equal(shared.get_contents_as_numpy(taken, np.float32, list(right.shape)), right)
    finally:
        for name, region in zip(names, (given, taken), strict=True):
            connection.unregister_cuda_shared_memory(name, headers=key)
            shared.destroy_shared_memory_region(region)


def test_large_batches_answered_from_behind_are_bit_equal(served: SimpleNamespace, wide_images: np.ndarray) -> None:
    """Every batch of two is above the size from which requests are read in place and answered by senders."""
    whole = expected(served, "wide", wide_images[:16]), expected(served, "wide", wide_images[16:])
    right = np.concatenate(whole)
    random = np.random.default_rng(6)
    cuts = [(int(start), int(start + random.integers(1, 9))) for start in random.integers(0, 24, 300)]
    connection = client(served)

    def one(cut: tuple[int, int]) -> bool:
        return np.array_equal(infer(connection, "wide", wide_images[slice(*cut)]), right[slice(*cut)])

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, cuts))


@pytest.mark.filterwarnings("ignore:The cuda:FutureWarning", "ignore:The cuda:DeprecationWarning")
def test_large_outputs_stay_in_cuda_shared_memory(served: SimpleNamespace, wide_images: np.ndarray) -> None:
    """Alone and several at a time: outputs are handed over on the GPU, from buffers that the next batch reuses."""
    parts = np.split(wide_images, 2)
    right = np.concatenate([expected(served, "wide", part) for part in parts])  # by one thread: a runner is no server
    infer_in_cuda_memory(served, "wide", wide_images[:5], right[:5])
    cuts = [(place, place + size) for place, size in ((0, 1), (3, 4), (8, 8), (16, 16), (20, 2), (5, 7))]

    def one(numbered: tuple[int, tuple[int, int]]) -> None:
        rows = slice(*numbered[1])
        infer_in_cuda_memory(served, "wide", wide_images[rows], right[rows], regions=str(numbered[0]))

    with ThreadPoolExecutor(len(cuts)) as pool:
        list(pool.map(one, enumerate(cuts)))


def test_a_thousand_malformed_requests_among_good_ones(served: SimpleNamespace, images: np.ndarray) -> None:
    from tritonclient.utils import InferenceServerException

    connection = client(served)
    right = expected(served, "int8", images[:3])
    bad: list[Callable[[], object]] = [
        lambda: infer(connection, "int8", images[:2].astype(np.float16), dtype="FP16"),
        lambda: infer(connection, "int8", images[:2, :, :4]),
        lambda: infer(connection, "int8", images[: MAX_BATCH + 1]),
        lambda: infer(connection, "int8", images[:2], name="picture"),
        lambda: infer(connection, "int8", images[:2].reshape(2, -1)),
    ]

    def one(number: int) -> bool:
        if number % 3 == 0:
            return np.array_equal(infer(connection, "int8", images[:3]), right)
        try:
            bad[number % len(bad)]()
        except InferenceServerException:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(1500)))
    assert served.server.exit_code is None
    np.testing.assert_array_equal(infer(connection, "int8", images[:3]), right)


def test_a_corrupt_plan_is_refused_with_a_reason(served: SimpleNamespace, tmp_path: Path) -> None:
    import shutil

    from repo_builder import serve

    repository = tmp_path / "repository"
    shutil.copytree(served.repository / "int8", repository / "int8")
    (repository / "int8" / "1" / "model.plan").write_bytes(b"no plan" * 1000)
    with (
        serve.start(repository, http_port=0, grpc_port=0, metrics_port=0, log=tmp_path / "log") as server,
        pytest.raises(ServeError, match="int8") as caught,
    ):
        server.wait_ready(120)
    assert "cannot load" in str(caught.value)


def preflight(repository: Path) -> tuple[Finding, ...]:
    return validate.preflight(repository, ["int8"], ask_engine=ask_engine)


def test_a_plan_for_another_machine_is_refused_before_triton_starts(served: SimpleNamespace, tmp_path: Path) -> None:
    import json
    import shutil

    assert preflight(served.repository) == ()
    copy = tmp_path / "int8"
    shutil.copytree(served.repository / "int8", copy)
    manifest = copy / "1" / "manifest.json"
    for key, value, told in (
        ("tensorrt_version", "8.4.0.1", "was built by TensorRT 8.4.0.1"),
        ("compute_capability", "7.5", "compute capability 7.5"),
    ):
        document = json.loads((served.repository / "int8" / "1" / "manifest.json").read_text())
        document["details"][key] = value
        manifest.write_text(json.dumps(document))
        (problem,) = preflight(tmp_path)
        assert told in problem.message
        assert "repo-builder compile build/int8" in problem.hint


def test_without_a_manifest_the_engine_is_asked(served: SimpleNamespace, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "int8"
    shutil.copytree(served.repository / "int8", copy)
    (copy / "1" / "manifest.json").unlink()
    assert preflight(tmp_path) == ()
    config = copy / "config.pbtxt"
    whole = config.read_text()
    for old, new, told in (
        ("max_batch_size: 16", "max_batch_size: 64", "end at 16"),
        ('name: "logits"', 'name: "scores"', "output 'scores' is not in the plan"),
    ):
        assert old in whole
        config.write_text(whole.replace(old, new))
        (problem,) = preflight(tmp_path)
        assert told in problem.message
    config.write_text(whole.replace("TYPE_FP32", "TYPE_FP16"))
    assert [item.message.partition(",")[0] for item in preflight(tmp_path)] == [
        "input 'image' is TYPE_FP16",
        "output 'logits' is TYPE_FP16",
    ]
    (copy / "1" / "model.plan").write_bytes(b"no plan")
    (problem,) = preflight(tmp_path)
    assert "cannot load" in problem.message
