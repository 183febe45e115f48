"""Pipelines on one real tritonserver: PNG files to classes, texts to embeddings, one graph beside ensembles."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as client

from repo_builder import cli, serve
from repo_builder.core import encoded, kept, pipelines
from repo_builder.core.recipe import Recipe
from repo_builder.flows.build import BuildOptions, BuildResult, build, piping
from repo_builder.serve import Server
from tests.conftest import dropped

pytestmark = [pytest.mark.server, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, PAGE = ROOT / "examples" / "pipelines", ROOT / "docs" / "pipelines.md"
STEPS = [
    {"step": "resize", "height": 32, "width": 32}, {"step": "normalise", "scale": 2 / 255, "mean": [1.0]},
    {"step": "layout"},
]  # fmt: skip
AFTER = [{"step": "softmax"}, {"step": "top_k", "k": 3}]
SHOWN = ["probabilities", "classes", "scores", "labels"]


def commands() -> list[list[str]]:
    """The commands of docs/pipelines.md, which are run here, but for the server's: that one has ports of its own."""
    block = re.search(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines()]


@dataclass(frozen=True)
class Built:
    folder: Path
    results: dict[str, BuildResult]

    def options(self, recipe: Recipe) -> BuildOptions:
        return BuildOptions(
            recipe=recipe, work=self.folder / "build", repository=self.folder / "model_repository", target="onnxruntime"
        )

    def images(self, count: int) -> tuple[list[bytes], list[int]]:
        paths = sorted(self.folder.glob("digits/*/*.png"), key=lambda path: path.name)[:count]
        return [path.read_bytes() for path in paths], [int(path.parent.name) for path in paths]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The examples as they are, and their network again: once as four models, once as one graph of raw pixels."""
    folder = tmp_path_factory.mktemp("pipelines")
    for path in EXAMPLES.iterdir():
        if path.suffix in (".py", ".toml"):
            shutil.copyfile(path, folder / path.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in commands():
            if line[0] == "python":
                subprocess.run([sys.executable, *line[1:]], check=True)
            elif line[1] == "build":
                assert cli.run(line[1:]) == 0
    recipe = Recipe.load(folder / "digits_png.toml")
    network = str(folder / "build" / "digits_png" / "engine" / "model.onnx")
    again: dict[str, Any] = {
        "model": {"source": network, "checkpoint": None, "arguments": {}},
        "quantize": {"layers": []},
    }
    before = [{"step": "decode_image"}, *STEPS]
    pixels = [{"name": "pixels", "dtype": "uint8", "shape": [8, 8, 3]}]
    raw = np.stack([_pixels(path) for path in sorted(folder.glob("digits/*/*.png"))[:40]])
    np.savez(folder / "pixels.npz", pixels=raw, y=np.arange(40) % 10)
    shown = {"after": AFTER, "outputs": SHOWN}
    whole = {"inputs": pixels, "before": STEPS, "fuse": True, **shown}
    recipes = [
        recipe,
        recipe.changed(name="apart", pipeline={"before": before, "fuse": False, **shown}, **again),
        recipe.changed(name="pixels", pipeline=whole, data={"source": str(folder / "pixels.npz")}, **again),
        Recipe.load(folder / "sentences.toml"),
        recipe.changed(
            name="called", pipeline={"inputs": pixels, "before": [called(folder)], **shown},
            data={"source": str(folder / "pixels.npz")}, **again,
        ),
    ]  # fmt: skip
    fixed = _fixed(Path(network), folder / "four.onnx", 4)
    texts = Recipe.load(folder / "sentences.toml")
    recipes += [
        recipe.changed(
            name="four", pipeline={"before": before, "fuse": False, **shown},
            **{**again, "model": {**again["model"], "source": str(fixed)}},
        ),
        recipe.changed(
            name="four_pixels", pipeline=whole, data={"source": str(folder / "pixels.npz")},
            **{**again, "model": {**again["model"], "source": str(fixed)}},
        ),
        texts.changed(name="one_text", repository={"max_batch_size": 0}, quantize={"layers": []}),
    ]  # fmt: skip
    mine = Built(folder, {})
    for item in recipes:
        mine.results[item.name] = build(mine.options(item))
    return mine


def _fixed(network: Path, path: Path, batch: int) -> Path:
    """Write a network again that takes one number of samples and no other."""
    model = onnx.load(network)
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def called(folder: Path) -> dict[str, Any]:
    """A step that is a function of a user's, who wrote one of its files badly."""
    (folder / "mine.py").write_text(
        "import numpy as np\nfrom beside import SIZE\n\n\ndef prepare(pixels, times):\n"
        "    if pixels.max() > 200 and pixels.min() > 200:\n        raise ValueError('nothing but white')\n"
        "    larger = pixels.repeat(times, 1).repeat(times, 2).astype(np.float32)\n"
        "    return np.ascontiguousarray((larger * (2 / 255) - 1).transpose(0, 3, 1, 2)[:, :, :SIZE])\n"
    )
    (folder / "beside.py").write_text("SIZE = 32\n")
    gives = [{"name": "image", "dtype": "fp32", "shape": [3, 32, 32]}]
    return {"step": "call", "function": f"{folder / 'mine.py'}:prepare", "arguments": {"times": 4}, "gives": gives}


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def server(built: Built) -> Iterator[Server]:
    with dropped(
        serve.start(built.folder / "model_repository", runtime="embedded", http_port=0, grpc_port=0, metrics_port=0)
    ) as started:
        started.wait_ready(timeout_s=300)
        yield started


def ask(server: Server, model: str, **inputs: np.ndarray) -> Any:
    tensors = []
    for name, values in inputs.items():
        kind = "BYTES" if values.dtype == object else {"u1": "UINT8", "f4": "FP32"}[values.dtype.str[1:]]
        tensor = client.InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        tensors.append(tensor)
    with client.InferenceServerClient(server.http_url.removeprefix("http://")) as connection:
        return connection.infer(model, tensors)


def test_png_files_become_classes_with_their_names(built: Built, server: Server) -> None:
    files, labels = built.images(16)
    answer = ask(server, "digits_png", image=encoded.column(files))
    assert np.mean(answer.as_numpy("classes")[:, 0] == labels) > 0.9
    assert answer.as_numpy("labels")[:, 0].tolist() == [str(item).encode() for item in answer.as_numpy("classes")[:, 0]]
    found = built.results["digits_png"].accuracy[-1]
    assert found.form == "pipeline"
    assert found.top1 is not None
    assert found.top1 > 0.95


def test_one_graph_gives_what_the_models_of_an_ensemble_give_bit_for_bit(built: Built, server: Server) -> None:
    files, _ = built.images(16)
    paths = sorted(built.folder.glob("digits/*/*.png"), key=lambda path: path.name)[:16]
    apart = ask(server, "apart", image=encoded.column(files))
    whole = ask(server, "pixels", pixels=np.stack([_pixels(path) for path in paths]))
    joined = ask(server, "digits_png", image=encoded.column(files))
    for name in SHOWN:
        np.testing.assert_array_equal(apart.as_numpy(name), whole.as_numpy(name))
    for name in SHOWN[1:]:
        np.testing.assert_array_equal(apart.as_numpy(name), joined.as_numpy(name))
    parts = {name: [part.kind for part in item.pipeline.parts] for name, item in built.results.items() if item.pipeline}
    assert parts["apart"] == ["decode_image", "steps", "network", "steps"]
    assert parts["digits_png"] == ["decode_image", "network"]
    assert parts["pixels"] == ["network"]


def test_what_is_served_is_what_the_build_saw(built: Built, server: Server) -> None:
    """The pipeline's outputs in the build's process on the held-out samples, and those through the server."""
    recipe = built.results["apart"].engine.recipe
    held_out = piping.load_raw(recipe, recipe_inputs(built), None).split("test").inputs["image"]
    saved = kept.load(built.folder / "build" / "apart" / "pipeline")["pipeline"]
    answer = ask(server, "apart", image=held_out[:16])
    for name in ("probabilities", "classes"):
        np.testing.assert_array_equal(answer.as_numpy(name), saved[name][:16])


def test_calibration_sees_the_tensors_that_the_served_steps_give(built: Built, server: Server) -> None:
    result = built.results["apart"]
    piped = piping.begin(built.options(result.engine.recipe))
    assert piped is not None
    raw = piped_raw = piping.load_data(built.options(result.engine.recipe), piped)
    fed = piped.through(piped_raw).split("calibration").inputs["image"]
    sent = raw.split("calibration").inputs["image"]
    letter = next(item.name for item in (built.folder / "model_repository").glob("apart.*1.decode_image"))[
        len("apart.")
    ]
    decoded = ask(server, f"apart.{letter}1.decode_image", image=sent[:8]).as_numpy("image.2")
    served = ask(server, f"apart.{letter}2.steps", **{"image.2": decoded})
    np.testing.assert_array_equal(served.as_numpy(served.get_response()["outputs"][0]["name"]), fed[:8])


def recipe_inputs(built: Built) -> Any:
    return pipelines.read(built.folder / "build" / "apart" / "pipeline").inputs


def test_a_bad_image_fails_alone_and_says_why(built: Built, server: Server) -> None:
    files, labels = built.images(8)
    url = server.http_url.removeprefix("http://")
    with client.InferenceServerClient(url, concurrency=8) as connection:
        waiting = []
        for place, data in enumerate(files):
            tensor = client.InferInput("image", [1, 1], "BYTES")
            tensor.set_data_from_numpy(encoded.column([data[:70] if place % 2 else data]))
            waiting.append(connection.async_infer("digits_png", [tensor]))
        for place, item in enumerate(waiting):
            if place % 2:
                with pytest.raises(Exception, match="image 0 is damaged"):
                    item.get_result()
            else:
                assert item.get_result().as_numpy("classes").shape == (1, 3)
    assert len(labels) == 8


def test_a_text_becomes_its_embedding(built: Built, server: Server) -> None:
    lines = (built.folder / "sentences.txt").read_text().splitlines()
    texts = [lines[0].encode(), lines[-1].encode()]
    found = ask(server, "sentences", text=encoded.column(texts)).as_numpy("embedding")
    alone = [ask(server, "sentences", text=encoded.column([item])).as_numpy("embedding")[0] for item in texts]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, np.stack(alone), atol=1e-5)
    for bad, said in ((b"\xff", "no UTF-8"), (b"a" * 70_000, "70000 bytes")):
        with pytest.raises(Exception, match=said):
            ask(server, "sentences", text=encoded.column([bad]))


def test_perf_sends_files_and_climbs_to_what_is_served(
    built: Built, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.folder)
    where = ["--url", server.grpc_url, "--json"]
    lines = [line[1:] for line in commands() if line[1] == "perf"]
    assert [line[1] for line in lines] == ["digits_png", "sentences"]
    assert cli.run([*lines[0], *where]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [item["form"] for item in document["ladder"]["rungs"]][-2:] == ["pipeline", "served"]
    assert document["ladder"]["culprit"] == ""
    assert document["accuracy"]["top1"] == built.results["digits_png"].accuracy[-1].top1
    assert document["accuracy"]["loss"] is None
    told = {item["model"].partition(".")[2][1:] for item in document["levels"][0]["server"][1:]}
    assert told == {"1.decode_image", "2.network"}
    assert cli.run([*lines[1], *where]) == 0
    again = ["--concurrency", "1", "--duration", "0.3", "--no-accuracy", "--input-data", "digits/3", *where]
    assert cli.run(["perf", "digits_png", *again]) == 0


def test_a_network_of_a_fixed_batch_has_its_pipeline_too(built: Built, server: Server) -> None:
    files, _ = built.images(4)
    sent = encoded.column(files)
    four, any_number = ask(server, "four", image=sent), ask(server, "apart", image=sent)
    paths = sorted(built.folder.glob("digits/*/*.png"), key=lambda path: path.name)[:4]
    whole = ask(server, "four_pixels", pixels=np.stack([_pixels(path) for path in paths]))
    for name in ("classes", "labels"):
        np.testing.assert_array_equal(four.as_numpy(name), any_number.as_numpy(name))
    for name in SHOWN:
        np.testing.assert_array_equal(four.as_numpy(name), whole.as_numpy(name))
    with pytest.raises(Exception, match="unexpected shape for input 'image'"):
        ask(server, "four", image=sent[:3])
    with pytest.raises(Exception, match=r"image 3 .* is no JPEG or PNG image"):
        ask(server, "four", image=encoded.column([*files[:3], b"no image"]))


def test_one_request_a_run_without_batches_is_measured_through_its_pipeline(
    built: Built, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.folder)
    shortly = ["--concurrency", "1", "--duration", "0.3", "--url", server.grpc_url, "--json"]
    for name, more in (("four", []), ("one_text", ["--input-data", "sentences.txt"])):
        assert cli.run(["perf", name, *more, *shortly]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [item["form"] for item in document["ladder"]["rungs"]][-2:] == ["pipeline", "served"]
        assert document["ladder"]["culprit"] == ""
        assert document["levels"][0]["requests"] > 0


def test_the_repository_is_valid(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["validate", str(built.folder / "model_repository"), "--strict"]) == 0
    for name in ("pixels", "digits_png"):
        assert cli.run(["inspect", str(built.folder / "model_repository" / name)]) == 0
        assert "feature_layers.0" in capsys.readouterr().out


def test_a_client_may_ask_triton_for_the_best_classes_by_their_labels(built: Built, server: Server) -> None:
    """Triton's own classification: of an ensemble as of one graph, from labels.txt."""
    files, labels = built.images(1)
    tensor = client.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(encoded.column(files))
    wanted = client.InferRequestedOutput("probabilities", class_count=2)
    with client.InferenceServerClient(server.http_url.removeprefix("http://")) as connection:
        found = connection.infer("apart", [tensor], outputs=[wanted]).as_numpy("probabilities")
    best = found[0, 0].decode().split(":")
    assert best[1:] == [str(labels[0])] * 2


def test_a_function_of_the_users_is_served_and_its_faults_are_one_requests(built: Built, server: Server) -> None:
    recipe = built.results["called"].engine.recipe
    inputs = pipelines.read(built.folder / "build" / "called" / "pipeline").inputs
    held_out = piping.load_raw(recipe, inputs, None).split("test").inputs["pixels"]
    saved = kept.load(built.folder / "build" / "called" / "pipeline")["pipeline"]
    np.testing.assert_array_equal(ask(server, "called", pixels=held_out).as_numpy("classes"), saved["classes"])
    with pytest.raises(Exception, match="mine:prepare failed: ValueError: nothing but white"):
        ask(server, "called", pixels=np.full((1, 8, 8, 3), 255, np.uint8))
