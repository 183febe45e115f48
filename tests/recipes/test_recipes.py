import fnmatch
import importlib.util

import numpy as np
import pytest
import torch

from repo_builder import datasets, models, recipes
from repo_builder.core.recipe import parse
from repo_builder.core.samples import Batches
from repo_builder.models import running

# Accuracy on the held-out samples of the weights that ship, as documented; three standard errors of slack would hide
# a wrong file, so the bound is the figure itself, less what another CPU's rounding may turn.
SHIPPED = {"vgg": 0.98, "jsc": 0.69, "jsc-s": 0.685, "jsc-toy": 0.67, "jsc-tiny": 0.61}
LIMITS = {"vgg": 2_500_000}


def test_built_in_recipes():
    assert set(recipes.built_in()) == {"vgg", "vgg-cifar10", "jsc", "jsc-s", "jsc-toy", "jsc-tiny"}


@pytest.mark.parametrize("name", recipes.built_in())
def test_a_recipe_is_complete_and_explains_itself(name):
    recipe = recipes.load(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert parse(recipe.to_dict()) == recipe
    text = recipes.built_in()[name].read_text(encoding="utf-8")
    assert "#" in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("name", recipes.built_in())
def test_every_rule_matches_a_layer(name):
    recipe = recipes.load(name)
    layers = [(path, type(layer).__name__) for path, layer in models.create(recipe.model, seed=0).named_modules()]
    assert recipe.quantize.layers
    for rule in recipe.quantize.layers:
        assert any(
            fnmatch.fnmatchcase(path, rule.name or "*") and fnmatch.fnmatchcase(kind, rule.type or "*")
            for path, kind in layers
        ), rule


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_good_on_samples_they_have_not_seen(name):
    recipe = recipes.load(name)
    path = models.checkpoint_path(recipe.model, None)
    assert path.stat().st_size < LIMITS.get(name, 50_000)
    module = models.create(recipe.model, seed=0)
    models.load_checkpoint(module, path, where="model.checkpoint")
    data = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed)
    facts = models.checkpoint_facts(path)
    assert facts["recipe"] == name
    assert facts["held_out"] == data.held_out
    test = data.split("test")
    batches = Batches.of(recipe.model.inputs, recipe.model.outputs, {})
    (logits,) = running.run(module, test.inputs, batches).values()
    top1 = (logits.argmax(1) == test.labels).mean()
    assert top1 >= SHIPPED[name]
    assert top1 < 1
    # most of the mass is not on one class, as after a collapse
    assert np.bincount(logits.argmax(1), minlength=logits.shape[1]).min() > 0.3 * len(test) / logits.shape[1]


def test_the_jets_network_takes_raw_features():
    recipe = recipes.load("jsc")
    module = models.create(recipe.model, seed=0)
    models.load_checkpoint(module, models.checkpoint_path(recipe.model, None), where="")
    data = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=0)
    train = data.split("train").inputs["features"].astype(np.float64)
    np.testing.assert_allclose(module.standardize.mean.numpy(), train.mean(0), rtol=1e-5)
    with torch.inference_mode():
        assert (module(torch.from_numpy(data.split("test").inputs["features"])) < 0).any()  # logits are not clipped


def test_the_jets_simulation_can_be_imported_without_its_simulator():
    from pathlib import Path

    script = Path(__file__).parents[1].parent / "tools" / "simulate_jets.py"
    spec = importlib.util.spec_from_file_location("simulate_jets", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with np.load(recipes.built_in()["jsc"].parent.parent / "data" / "jets.npz") as stored:
        assert stored["feature_names"].tolist() == list(module.FEATURES)
        assert stored["classes"].tolist() == list(module.CLASSES)
