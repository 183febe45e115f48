import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repo_builder import models
from repo_builder.core.errors import ModelError, OutputError
from repo_builder.models import checkpoints, jsc, vgg


def small(seed=0):
    torch.manual_seed(seed)
    return jsc.build(layers=[4, "bn", "relu", 2], features=3).eval()


def load(module, path):
    models.load_checkpoint(module, path, where="model.checkpoint")


def same(module, other):
    return all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"module." + name: item for name, item in state.items()}]
)
def test_plain_and_data_parallel_checkpoints(tmp_path, suffix, wrap):
    original, path = small(1), tmp_path / f"a.{suffix}"
    state = wrap(original.state_dict())
    safetensors.torch.save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    module = small(2)
    load(module, path)
    assert same(module, original)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_wrapped_checkpoints(tmp_path, key):
    original = small(1)
    torch.save({"epoch": 3, key: original.state_dict()}, tmp_path / "a.pt")
    module = small(2)
    load(module, tmp_path / "a.pt")
    assert same(module, original)


def test_half_precision_is_cast_to_the_modules_own(tmp_path):
    original = small(1)
    state = {name: item.half() if item.is_floating_point() else item for name, item in original.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    module = small(2)
    load(module, tmp_path / "a.safetensors")
    assert {item.dtype for item in module.parameters()} == {torch.float32}
    assert torch.equal(module.layers[0].weight, original.layers[0].weight.half().float())


def test_batch_counters_may_be_missing(tmp_path):
    original = small(1)
    state = {name: item for name, item in original.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "a.pt")
    module = small(2)
    load(module, tmp_path / "a.pt")
    assert torch.equal(module.layers[3].weight, original.layers[3].weight)


def changed(**changes):
    state = small(1).state_dict()
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(layers__0__bias=None), r"1 missing .layers\.0\.bias"),
        (changed(extra=torch.zeros(1)), r"1 unexpected .extra"),
        (changed(layers__0__bias=torch.zeros(5)), r"layers\.0\.bias is \[5\], the model has \[4\]"),
        (
            changed(layers__3__weight=None, layers__3__weights=torch.zeros(2, 4)),
            r"1 missing .*1 unexpected .*'layers\.3\.weights': did you mean 'layers\.3\.weight'",
        ),
        (changed(layers__0__bias=torch.full((4,), torch.nan)), r"'layers\.0\.bias' .*NaN"),
        ({"step": 3}, "holds no state dict"),
        ([torch.zeros(1)], "holds no state dict"),
        ({}, "holds no state dict"),
    ],
)
def test_checkpoints_that_do_not_fit_leave_the_module_alone(tmp_path, state, message):
    torch.save(state, tmp_path / "a.pt")
    module, before = small(2), small(2)
    with pytest.raises(ModelError, match=message) as caught:
        load(module, tmp_path / "a.pt")
    assert caught.value.where == "model.checkpoint"
    assert same(module, before)


def test_another_width_is_recognised(tmp_path):
    torch.save(vgg.build(width=0.02, classes=10).state_dict(), tmp_path / "a.pt")
    wide = vgg.build(width=0.04, classes=10)
    with pytest.raises(ModelError, match=r"and \d+ more\).*check model\.arguments"):
        load(wide, tmp_path / "a.pt")
    half = {name: item[: max(1, len(item) // 2)] if item.ndim else item for name, item in small().state_dict().items()}
    torch.save(
        {**small().state_dict(), **{n: half[n] for n in ("layers.0.weight", "layers.0.bias")}}, tmp_path / "b.pt"
    )
    with pytest.raises(ModelError, match=r"its layers are 0\.5 times as wide"):
        load(small(), tmp_path / "b.pt")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"layers.0.bias": Evil()}}, "a.pt")
    with Path("b.pt").open("wb") as stream:
        pickle.dump(Evil(), stream)
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ModelError, match="holds more than plain tensors, and nothing in a checkpoint is executed"):
            load(small(), tmp_path / name)
    assert not (tmp_path / "evil").exists()
    with pytest.raises(ModelError) as caught:
        load(small(), tmp_path / "a.pt")
    assert "weights_only=False" not in str(caught.value)  # torch's own advice would open the door


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(small(), tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"torch\.save\(model\.state_dict\(\)"):
        load(small(), tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(ModelError):
        load(small(), tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\xff" * 100])
def test_a_damaged_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError):
        load(small(), tmp_path / name)


def test_a_truncated_file(tmp_path):
    for name, save in (("a.safetensors", safetensors.torch.save_file), ("a.pt", torch.save)):
        path = tmp_path / name
        save(small().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ModelError, match="is no checkpoint, or is damaged"):
            load(small(), path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match="there is no checkpoint file"):
        load(small(), tmp_path / "a.pt")


def test_writing_is_deterministic_and_keeps_facts(tmp_path):
    facts = {name: name.upper() for name in ["a", "list", "of", "words", "that", "a", "hash", "table", "shuffles"]}
    for name in ("a.safetensors", "b.safetensors"):
        checkpoints.write(tmp_path / name, small(1).state_dict(), facts)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert models.checkpoint_facts(tmp_path / "a.safetensors") == facts
    module = small(2)
    load(module, tmp_path / "a.safetensors")
    assert same(module, small(1))


def test_files_without_facts(tmp_path):
    torch.save({}, tmp_path / "a.pt")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"damaged")
    for name in ("a.pt", "b.safetensors", "c.safetensors", "missing.safetensors"):
        assert models.checkpoint_facts(tmp_path / name) == {}


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        checkpoints.write(tmp_path / "file" / "a.safetensors", {"a": torch.zeros(1)}, {})


ODD = {
    "meta": (lambda item: item.to("meta"), "is on the meta device"),
    "sparse": (lambda item: item.to_sparse(), "is sparse.*to_dense"),
    "csr": (lambda item: item.to_sparse_csr() if item.ndim == 2 else item, "is sparse"),
    "quantized": (lambda item: torch.quantize_per_tensor(item.float(), 0.1, 0, torch.qint8), "is quantized"),
    "complex": (lambda item: item.to(torch.complex64), "is complex, the model's is torch.float32"),
    "nan": (lambda item: item * float("nan"), "holds NaN or infinite values"),
    "beyond": (lambda item: item.double() + 1e300, r"or values beyond torch\.float32"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize", "ignore:.*TypedStorage")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_without_plain_values_are_refused_by_name(tmp_path, kind):
    change, message = ODD[kind]
    module = small(1)
    before = small(1)
    state = {name: change(item) if item.is_floating_point() else item for name, item in small(2).state_dict().items()}
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(ModelError, match=message) as caught:
        load(module, tmp_path / "odd.pt")
    assert "the tensor '" in caught.value.message
    assert same(module, before)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int32])
def test_tensors_of_other_types_are_cast(tmp_path, kind):
    state = {name: torch.ones_like(item).to(kind) for name, item in small().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    module = small()
    load(module, tmp_path / "a.pt")
    assert all(bool((item == 1).all()) for item in module.state_dict().values())


def test_fractions_for_whole_numbers_are_refused(tmp_path):
    state = {name: item + 0.5 for name, item in small().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"num_batches_tracked.*no torch\.int64"):
        load(small(), tmp_path / "a.pt")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_happens_to_a_checkpoint_it_loads_or_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / data.draw(st.sampled_from(["a.pt", "a.safetensors"]))
    state = small().state_dict()
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    stored = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(stored[: data.draw(st.integers(len(stored) // 2, len(stored)))]))
    try:
        load(small(), path)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ends are right
