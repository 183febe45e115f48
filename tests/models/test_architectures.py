import numpy as np
import pytest
import torch
from torch import nn

from repo_builder import models, recipes
from repo_builder.models import jsc, vgg


def network(name):
    recipe = recipes.load(name)
    return models.create(recipe.model, seed=0)


def test_vgg_at_full_width_is_the_published_one():
    module = network("vgg-cifar10")
    convolutions = [
        (name, layer.in_channels, layer.out_channels)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]
    assert convolutions == [
        ("feature_layers.0", 3, 128),
        ("feature_layers.3", 128, 128),
        ("feature_layers.7", 128, 256),
        ("feature_layers.10", 256, 256),
        ("feature_layers.14", 256, 512),
        ("feature_layers.17", 512, 512),
    ]
    linear = [
        (name, layer.in_features, layer.out_features)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    assert linear == [("classifier.0", 8192, 1024), ("classifier.2", 1024, 1024), ("last_layer", 1024, 10)]
    kinds = "".join(type(layer).__name__[0] for layer in module.feature_layers)
    assert kinds == "CBRCBRM" * 3  # convolution, BatchNorm, ReLU, max pooling
    assert all(layer.bias is not None for layer in module.modules() if isinstance(layer, nn.Conv2d))


def test_vgg_width_scales_every_hidden_layer():
    module = vgg.build(width=0.25, classes=7)
    assert module.feature_layers[17].out_channels == 128
    assert module.classifier[0].in_features == 2048
    assert module.last_layer.weight.shape == (7, 256)
    assert vgg.build(width=0.001).feature_layers[0].out_channels == 1


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("jsc", ["L64", "B", "R", "L32", "B", "R", "L32", "B", "R", "L5"]),
        ("jsc-s", ["L64", "B", "R", "L32", "B", "R", "L32", "B", "R", "L32", "B", "R", "L5"]),
        ("jsc-toy", ["B", "R", "L8", "B", "R", "L8", "B", "R", "L5"]),
        ("jsc-tiny", ["B", "R", "L5"]),
    ],
)
def test_jet_classifiers(name, layers):
    module = network(name)
    found = [
        f"L{layer.out_features}" if isinstance(layer, nn.Linear) else type(layer).__name__[0] for layer in module.layers
    ]
    assert found == layers
    assert module.standardize.mean.shape == (16,)


def test_jet_classifiers_standardise_raw_features():
    generator = np.random.default_rng(0)
    samples = generator.normal([5, -100, 3], [0.01, 50, 0], size=(1000, 3)).astype(np.float32)
    module = jsc.build(layers=[2], features=3)
    module.fit_inputs(samples)
    scaled = module.standardize(torch.from_numpy(samples)).numpy()
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(scaled.std(0), [1, 1, 0], atol=1e-3)  # a constant feature is centred, not blown up


def test_standardisation_travels_in_the_checkpoint():
    names = set(network("jsc").state_dict())
    assert {"standardize.mean", "standardize.std"} <= names
