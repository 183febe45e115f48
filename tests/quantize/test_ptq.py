"""Post-training quantization of torch modules: both back ends, the table, and what goes wrong."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn

from repo_builder import quantize as stage  # noqa: E402
from repo_builder.core.errors import QuantizeError, RecipeError  # noqa: E402
from repo_builder.core.recipe import InputQuantizer, LayerRule, QuantizeSpec, WeightQuantizer  # noqa: E402
from repo_builder.quantize.fake_quant import FakeQuantize  # noqa: E402
from repo_builder.quantize.layers import Add, find_layers  # noqa: E402
from repo_builder.quantize.table import decibels  # noqa: E402

LIBRARIES = {"modelopt": "modelopt.torch.quantization", "pytorch-quantization": "pytorch_quantization.nn"}
CALIBRATORS = [("max", None), ("percentile", 99.0), ("mse", None), ("entropy", None)]


@pytest.fixture(params=sorted(LIBRARIES))
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "pytorch-quantization":
        pytest.importorskip("pytorch_quantization", reason="pytorch-quantization is not installed")
    else:
        pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    return str(request.param)


@pytest.fixture
def both() -> tuple[str, str]:
    pytest.importorskip("pytorch_quantization", reason="pytorch-quantization is not installed")
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    return "modelopt", "pytorch-quantization"


def scales(module: Any) -> dict[str, np.ndarray]:
    return {name: item.scale.numpy() for name, item in module.named_modules() if isinstance(item, FakeQuantize)}


# --- ranges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calibrator", "percentile"), CALIBRATORS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_both_back_ends_find_the_same_ranges(
    both, small, images, quantize, calibrator: str, percentile: float | None, per_channel: bool
) -> None:
    rule = LayerRule(
        precision="int8",
        input=InputQuantizer(calibrator=calibrator, percentile=percentile),
        weight=WeightQuantizer(calibrator=calibrator, percentile=percentile, per_channel=per_channel),
    )
    asked = LayerRule(type="Add", precision="int8", input=rule.input)
    one, other = (quantize(small, images, rule, asked, backend=name) for name in both)
    found, expected = scales(one.module), scales(other.module)
    assert sorted(found) == sorted(expected)
    assert len(found) == 4 * 2 + 2
    for name, scale in found.items():
        np.testing.assert_array_equal(scale, expected[name], err_msg=name)
    assert one.layers == other.layers


KINDS = {
    "Linear": (lambda: nn.Linear(6, 5), (6,)),
    "Conv1d": (lambda: nn.Conv1d(4, 5, 3), (4, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 5, 3), (4, 9, 9)),
    "Conv3d": (lambda: nn.Conv3d(4, 5, 3), (4, 6, 6, 6)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 5, 3), (4, 9)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 5, 3), (4, 9, 9)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 5, 3), (4, 6, 6, 6)),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), (4, 8)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (4, 8, 8)),
    "MaxPool3d": (lambda: nn.MaxPool3d(2), (4, 8, 8, 8)),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), (4, 8)),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), (4, 8, 8)),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), (4, 8, 8, 8)),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(2), (4, 8)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(2), (4, 8, 8)),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(2), (4, 8, 8, 8)),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_layer_takes_int8_in_either_back_end(backend: str, quantize, kind: str) -> None:
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    module = nn.Sequential(make()).eval()
    samples = np.random.default_rng(0).standard_normal((8, *shape)).astype(np.float32)
    made = quantize(module, samples, LayerRule(type=kind, precision="int8"), backend=backend)
    (row,) = made.layers
    assert (row.name, row.type, row.precision, row.calibrator) == ("0", kind, "int8", "max")
    assert row.input_amax == np.abs(samples).max()
    if hasattr(module[0], "weight"):
        axis = 1 if "Transpose" in kind else 0
        per_channel = module[0].weight.detach().abs().movedim(axis, 0).flatten(1).amax(1)
        np.testing.assert_array_equal(scales(made.module)["0.parametrizations.weight.0"], per_channel / 127)
        assert row.weight_amax == per_channel.max()
    else:
        assert row.weight_amax is None
    assert 20 < row.sqnr_db < 80
    with torch.no_grad():
        got, exact = made.module(torch.from_numpy(samples)), module(torch.from_numpy(samples))
    assert 0 < (got - exact).abs().max() < 0.1 * exact.abs().max()


def test_the_library_s_own_fake_quantization_says_the_same_within_its_rounding(both, small, images, quantize) -> None:
    """Ours differs from theirs only where theirs lands beside ONNX."""
    from repo_builder.quantize.modelopt import mtq

    folded = stage.fold(small)
    config = {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
            *(
                {"quantizer_name": f"{name}.input_quantizer", "cfg": {"num_bits": 8}}
                for name, kind in find_layers(folded)
                if kind in ("Conv2d", "Linear")
            ),
        ],
        "algorithm": "max",
    }
    x = torch.from_numpy(images)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = mtq.quantize(copy.deepcopy(folded), config, lambda module: module(x))(x)
        ours = quantize(small, images, backend="modelopt").module(x)
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_tells_what_was_asked_and_found(small, images, quantize) -> None:
    made = quantize(
        small,
        images,
        LayerRule(type="Conv2d", precision="int8", input=InputQuantizer(calibrator="percentile", percentile=99.9)),
        LayerRule(name="head.0", precision="fp16"),
        LayerRule(type="MaxPool2d", precision="int8"),
    )
    assert [(row.name, row.type, row.precision, row.rule, row.calibration) for row in made.layers] == [
        ("features.0", "Conv2d", "int8", "type=Conv2d", "percentile 99.9"),
        ("branch", "Conv2d", "int8", "type=Conv2d", "percentile 99.9"),
        ("pool", "MaxPool2d", "int8", "type=MaxPool2d", "max"),
        ("head.0", "Linear", "fp16", "name=head.0", ""),
        ("head.3", "Linear", "fp32", "", ""),
    ]
    assert made.fp16_layers == {"head.0"}
    for row in made.layers:
        assert (row.input_amax is not None) == (row.sqnr_db is not None) == (row.precision == "int8")


def test_signal_to_noise_is_of_each_layer_alone_on_all_samples(small, images, quantize) -> None:
    made = quantize(small, images, batch_size=7)
    folded = stage.fold(small)
    row = next(item for item in made.layers if item.name == "branch")
    with torch.no_grad():
        x = folded.features(torch.from_numpy(images))
        exact, rounded = folded.branch(x).double(), made.module.branch(x).double()
    expected = 10 * np.log10(float(exact.square().sum() / (rounded - exact).square().sum()))
    assert row.sqnr_db == pytest.approx(expected, abs=0.01)


def test_decibels_are_always_numbers() -> None:
    assert decibels(1, 0) == decibels(0, 0) == 200
    assert decibels(0, 1) == -200
    assert decibels(100, 1) == pytest.approx(20)
    assert decibels(1e300, 1e-300) == 200


# --- nothing is left behind -----------------------------------------------------------------------------------------


def test_the_module_and_the_libraries_are_left_as_they_were(backend, small, images, quantize, capfd) -> None:
    before = copy.deepcopy(small.state_dict())
    generator = torch.get_rng_state()
    verbosity = None
    if backend == "pytorch-quantization":
        from absl import logging
        from pytorch_quantization.nn import TensorQuantizer

        verbosity = logging.get_verbosity()
    linear = nn.Linear
    made = quantize(small, images, backend=backend)
    assert capfd.readouterr() == ("", "")
    assert not any(hasattr(item, "input_quantizers") or item._forward_hooks for item in small.modules())
    assert not any(item._forward_hooks for item in made.module.modules())
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert nn.Linear is linear
    if backend == "pytorch-quantization":
        assert logging.get_verbosity() == verbosity
        assert TensorQuantizer.use_fb_fake_quant is False
    names = {type(item).__module__.partition(".")[0] for item in made.module.modules()}
    assert names & {"modelopt", "pytorch_quantization"} == set()


def test_the_same_seed_gives_the_same_bytes(backend, small, images, quantize) -> None:
    one, other = (quantize(small, images, backend=backend).module.state_dict() for _ in range(2))
    assert list(one) == list(other)
    assert all(one[key].numpy().tobytes() == other[key].numpy().tobytes() for key in one)


def test_batch_size_does_not_change_the_ranges(small, images, quantize) -> None:
    one, other = (scales(quantize(small, images, batch_size=size).module) for size in (3, 40))
    for name, scale in one.items():
        np.testing.assert_allclose(scale, other[name], rtol=1e-6)


def test_without_an_int8_rule_no_back_end_is_needed(small, images) -> None:
    spec = QuantizeSpec(backend="modelopt", layers=(LayerRule(name="head.*", precision="fp16"),))
    made = stage.quantize(small, spec, {"x": images}, input_names=("x",), seed=0)
    assert scales(made.module) == {}
    assert made.fp16_layers == {"head.0", "head.3"}


# --- what goes wrong ------------------------------------------------------------------------------------------------


class Idle(nn.Module):
    """Has a layer that its forward never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.used(x)


def test_a_layer_that_never_runs_is_named(backend, quantize) -> None:
    with pytest.raises(QuantizeError, match="idle: the layer was not run"):
        quantize(Idle(), np.ones((4, 4), np.float32), LayerRule(type="Linear", precision="int8"), backend=backend)


def test_nan_in_the_data_is_found_at_the_first_layer_it_reaches(backend, small, images, quantize) -> None:
    images[3, 0, 0, 0] = np.nan
    with pytest.raises(QuantizeError, match=r"features\.0: the values to calibrate on hold NaN or infinity"):
        quantize(small, images, backend=backend)


def test_an_input_that_is_always_zero_leaves_no_range(quantize) -> None:
    with pytest.raises(QuantizeError, match="0: its input is zero in every calibration sample"):
        quantize(nn.Sequential(nn.Linear(4, 4)), np.zeros((4, 4), np.float32))


def test_padding_that_no_int8_kernel_does_is_refused(quantize) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(QuantizeError, match="0: it pads in 'reflect' mode"):
        quantize(module, np.ones((2, 3, 8, 8), np.float32))


class Own(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x: Any) -> Any:
        return super().forward(x)


def test_a_class_that_modelopt_does_not_know_is_named_with_the_way_out(both, quantize) -> None:
    module, samples = nn.Sequential(Own(3, 4, 3)), np.ones((2, 3, 8, 8), np.float32)
    with pytest.raises(QuantizeError, match=r"ModelOpt quantizes no Own.*backend = \"pytorch-quantization\""):
        quantize(module, samples, backend="modelopt")
    assert quantize(module, samples, backend="pytorch-quantization").layers[0].type == "Conv2d"


def test_missing_empty_and_misnamed_calibration_data(small, images) -> None:
    spec = QuantizeSpec(layers=(LayerRule(precision="int8"),))
    with pytest.raises(QuantizeError, match="no input 'image' → did you mean 'images'"):
        stage.quantize(small, spec, {"images": images}, input_names=("image",), seed=0)
    with pytest.raises(QuantizeError, match="there is no calibration sample"):
        stage.quantize(small, spec, {"x": images[:0]}, input_names=("x",), seed=0)


def test_data_that_the_network_does_not_take_is_one_sentence(small, images, quantize) -> None:
    with pytest.raises(QuantizeError, match=r"does not run on calibration data of shape \[16, 2, 8, 8\]: ") as raised:
        quantize(small, images[:, :2])
    assert "\n" not in str(raised.value)


def test_several_inputs_are_passed_in_the_order_of_their_names(both) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(5, 2)

        def forward(self, narrow: Any, wide: Any) -> Any:
            return self.left(narrow) + self.right(wide)

    rng = np.random.default_rng(0)
    data = {"wide": rng.standard_normal((9, 5)), "unused": np.ones(9), "narrow": rng.standard_normal((9, 3))}
    data = {name: value.astype(np.float32) for name, value in data.items()}
    for backend in both:
        spec = QuantizeSpec(backend=backend, layers=(LayerRule(precision="int8"),))
        made = stage.quantize(Two(), spec, data, input_names=("narrow", "wide"), seed=0)
        assert [row.input_amax for row in made.layers] == [np.abs(data[key]).max() for key in ("narrow", "wide")]


def test_an_unknown_back_end_is_named(small, images) -> None:
    spec = QuantizeSpec(backend="modelop", layers=(LayerRule(precision="int8"),))
    with pytest.raises(RecipeError, match=r"quantize\.backend: 'modelop' is no .* did you mean 'modelopt'"):
        stage.quantize(small, spec, {"x": images}, input_names=("x",), seed=0)


def test_layers_are_found_by_what_they_are_not_by_what_they_are_called() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own(3, 4, 3)
            self.again = self.own
            self.add = Add()
            self.drop = nn.Dropout()

    assert find_layers(Twice()) == [("own", "Conv2d"), ("add", "Add"), ("drop", "Dropout")]
