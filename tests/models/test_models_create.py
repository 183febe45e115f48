import sys

import pytest
import torch

from repo_builder import models, recipes
from repo_builder.core.errors import ModelError, RecipeError
from repo_builder.core.recipe import ModelSpec
from repo_builder.core.tensors import DType, TensorSpec


def spec(source, checkpoint=None, **arguments):
    return ModelSpec(
        source=source,
        arguments=arguments,
        checkpoint=checkpoint,
        inputs=(TensorSpec(name="x", dtype=DType.FP32, shape=(16,)),),
        outputs=(TensorSpec(name="y", dtype=DType.FP32, shape=(5,)),),
    )


@pytest.mark.parametrize("name", recipes.built_in())
def test_every_built_in_recipe_makes_a_network_of_its_shapes(name):
    recipe = recipes.load(name)
    module = models.create(recipe.model, seed=recipe.seed)
    assert not module.training
    example = torch.zeros(2, *recipe.model.inputs[0].shape)
    with torch.inference_mode():
        assert module(example).shape == (2, *recipe.model.outputs[0].shape)


def test_the_seed_decides_the_weights_and_nothing_outside():
    before = torch.random.get_rng_state()
    one, same, other = (models.create(spec("jsc", layers=[5]), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one["layers.0.weight"], same["layers.0.weight"])
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


def test_an_unknown_architecture_or_argument():
    with pytest.raises(ModelError, match=r"model\.source: there is no architecture 'vg'.*did you mean 'vgg'"):
        models.create(spec("vg"), seed=0)
    with pytest.raises(RecipeError, match=r"model\.arguments\.widht: unknown argument 'widht'.*did you mean 'width'"):
        models.create(spec("vgg", widht=0.5), seed=0)
    with pytest.raises(RecipeError, match="the argument 'layers' is missing"):
        models.create(spec("jsc"), seed=0)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("vgg", {"width": 0}, "must be positive"),
        ("jsc", {"layers": [8, "rleu", 5]}, "layers has 'rleu'; it takes sizes and 'bn', 'relu'"),
        ("jsc", {"layers": [5, "relu"]}, "must end with the number of classes"),
        ("jsc", {"layers": []}, "must end with the number of classes"),
    ],
)
def test_arguments_that_make_no_network(source, arguments, message):
    with pytest.raises(ModelError, match=message):
        models.create(spec(source, **arguments), seed=0)


@pytest.mark.parametrize(
    ("source", "arguments", "where"),
    [
        ("vgg", {"width": "wide"}, "model.arguments.width"),
        ("jsc", {"layers": 8}, "model.arguments.layers"),
        ("jsc", {"layers": [8, True, 5]}, "model.arguments.layers[1]"),
        ("jsc", {"layers": [8, [5]]}, "model.arguments.layers[1]"),
    ],
)
def test_arguments_of_other_types_are_named_by_their_key(source, arguments, where):
    with pytest.raises(RecipeError) as caught:
        models.create(spec(source, **arguments), seed=0)
    assert caught.value.where == where


OWN = """
import torch
def network(size=4):
    return torch.nn.Linear(16, size)
def nothing():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield "own_network"
    sys.modules.pop("own_network", None)


def test_a_users_function(own):
    assert models.create(spec(f"{own}:network", size=7), seed=0)(torch.zeros(1, 16)).shape == (1, 7)
    with pytest.raises(ModelError, match=r"returned int, not a torch\.nn\.Module"):
        models.create(spec(f"{own}:nothing"), seed=0)
    with pytest.raises(RecipeError, match="has no 'missing'"):
        models.create(spec(f"{own}:missing"), seed=0)


# ---- where the checkpoint is


def test_checkpoint_path(tmp_path):
    own = tmp_path / "own.safetensors"
    own.write_bytes(b"")
    assert models.checkpoint_path(spec("jsc", checkpoint=str(own)), None) == own
    assert models.checkpoint_path(spec("jsc", checkpoint="package:jsc.safetensors"), own) == own
    assert models.checkpoint_path(spec("jsc", checkpoint="package:jsc.safetensors"), None).name == "jsc.safetensors"


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (None, "the recipe names no checkpoint.*repo-builder train.*--checkpoint"),
        ("package:nothing.safetensors", "holds no weights file 'nothing.safetensors'.*repo-builder train"),
        ("nothing.pt", "no checkpoint file 'nothing.pt'.*repo-builder train"),
    ],
)
def test_checkpoint_path_that_leads_nowhere(checkpoint, message):
    with pytest.raises(ModelError, match=message) as caught:
        models.checkpoint_path(spec("jsc", checkpoint=checkpoint), None)
    assert caught.value.where == "model.checkpoint"


def test_an_option_that_leads_nowhere_is_named(tmp_path):
    with pytest.raises(ModelError, match="--checkpoint: there is no checkpoint file"):
        models.checkpoint_path(spec("jsc", checkpoint="package:jsc.safetensors"), tmp_path / "nothing.pt")
