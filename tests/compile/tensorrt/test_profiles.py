from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from repo_builder import recipes
from repo_builder.compile.tensorrt import profiles as trt_profiles
from repo_builder.core.errors import CompileError, RecipeError
from repo_builder.core.profiles import Profile
from repo_builder.core.recipe import ProfileSpec, Recipe, RepositorySpec, parse
from repo_builder.core.tensors import ShapeProfile


def recipe(*profiles: ProfileSpec, shape: list[int] | None = None, **repository: Any) -> Recipe:
    document = recipes.load("vgg").to_dict()
    if shape:
        document["model"]["inputs"][0]["shape"] = shape
    made = parse(document)
    spec = dataclasses.replace(made.compile.tensorrt, profiles=profiles)
    asked = {"max_batch_size": 64, "warmup_batch_sizes": ()} | repository
    return dataclasses.replace(
        made, compile=dataclasses.replace(made.compile, tensorrt=spec), repository=RepositorySpec(**asked)
    )


def batches(profile: Profile) -> tuple[int, int, int]:
    shape = profile["image"]
    return shape.min[0], shape.opt[0], shape.max[0]


@pytest.mark.parametrize(
    ("asked", "profiles"),
    [
        ({"max_batch_size": 64}, [(1, 1, 1), (2, 8, 8), (9, 64, 64)]),
        ({"max_batch_size": 20}, [(1, 1, 1), (2, 8, 8), (9, 20, 20)]),
        ({"max_batch_size": 8}, [(1, 1, 1), (2, 8, 8)]),
        ({"max_batch_size": 1}, [(1, 1, 1)]),
        (
            {"max_batch_size": 64, "preferred_batch_sizes": (16, 32)},
            [(1, 1, 1), (2, 16, 16), (17, 32, 32), (33, 64, 64)],
        ),
    ],
)
def test_without_profiles_each_usual_batch_has_one_of_its_own(asked: Any, profiles: list[Any]) -> None:
    found = trt_profiles.from_recipe(recipe(**asked))
    assert [batches(item) for item in found] == profiles
    assert found[0]["image"].max == (1, 3, 32, 32)


def test_without_batching_there_is_room_for_one() -> None:
    (profile,) = trt_profiles.from_recipe(recipe(max_batch_size=0))
    assert batches(profile) == (1, 1, 1)


def test_several_profiles_keep_their_order() -> None:
    few, many = ProfileSpec(min_batch=1, opt_batch=1, max_batch=4), ProfileSpec(min_batch=5, opt_batch=32, max_batch=64)
    assert [batches(item) for item in trt_profiles.from_recipe(recipe(few, many))] == [(1, 1, 4), (5, 32, 64)]


def test_dynamic_dimensions_take_their_shapes() -> None:
    shapes = {"image": {"min": [3, 16, 16], "opt": [3, 32, 32], "max": [3, 64, 64]}}
    (profile,) = trt_profiles.from_recipe(recipe(ProfileSpec(shapes=shapes), shape=[3, -1, -1]))
    assert profile["image"] == ShapeProfile(min=(1, 3, 16, 16), opt=(8, 3, 32, 32), max=(64, 3, 64, 64))


@pytest.mark.parametrize(
    ("spec", "shape", "said"),
    [
        (ProfileSpec(), [3, -1, -1], "no min, opt and max shape"),
        (ProfileSpec(shapes={"image": {"min": [3, 8, 8]}}), [3, -1, 8], "no min, opt and max shape"),
        (ProfileSpec(shapes={"picture": {}}), None, "there is no input 'picture'"),
        (ProfileSpec(shapes={"image": {"min": [1, 8, 8], "opt": [1, 8, 8], "max": [1, 8, 8]}}), None, "is no shape of"),
    ],
)
def test_what_makes_no_profile_is_refused(spec: ProfileSpec, shape: list[int] | None, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        trt_profiles.from_recipe(recipe(spec, shape=shape))
    assert str(caught.value.where).startswith("compile.tensorrt.profiles[0]")


def test_batches_that_no_profile_covers_are_refused() -> None:
    with pytest.raises(CompileError, match="batches of 64, and the largest profile ends at 32"):
        trt_profiles.from_recipe(recipe(ProfileSpec(max_batch=32)))


@pytest.mark.parametrize(
    ("low", "high", "hole"),
    [((1, 4), (8, 64), r"image \[5, 3, 32, 32\]"), ((8, 16), (17, 64), r"image \[1, 3, 32, 32\]")],
)
def test_batches_beside_the_profiles_are_refused(low: tuple[int, int], high: tuple[int, int], hole: str) -> None:
    specs = [ProfileSpec(min_batch=least, opt_batch=most, max_batch=most) for least, most in (low, high)]
    with pytest.raises(CompileError, match=f"Triton may send {hole}") as caught:
        trt_profiles.from_recipe(recipe(*specs))
    assert caught.value.where == "compile.tensorrt.profiles"
    assert len(trt_profiles.from_recipe(recipe(*specs, max_batch_size=0))) == 2


def test_the_largest_batch_must_be_there_for_every_shape() -> None:
    few, many = (
        ProfileSpec(max_batch=batch, shapes={"image": {"min": [3, 8, 8], "opt": [3, 8, 8], "max": [3, 8, most]}})
        for batch, most in ((8, 64), (64, 16))
    )
    with pytest.raises(CompileError, match=r"image \[9, 3, 8, 17\]"):
        trt_profiles.from_recipe(recipe(few, many, shape=[3, 8, -1]))


def test_the_tightest_profile_is_chosen() -> None:
    few, many = (
        ProfileSpec(min_batch=1, opt_batch=2, max_batch=64),
        ProfileSpec(min_batch=1, opt_batch=60, max_batch=64),
    )
    profiles = trt_profiles.from_recipe(recipe(few, many))
    assert trt_profiles.choose(profiles, {"image": (3, 3, 32, 32)}) == 0
    assert trt_profiles.choose(profiles, {"image": (50, 3, 32, 32)}) == 1
    assert trt_profiles.choose(profiles, {"image": (65, 3, 32, 32)}) is None
    assert trt_profiles.choose(profiles, {"picture": (1, 3, 32, 32)}) is None
