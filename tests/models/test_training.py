import dataclasses

import numpy as np
import pytest
import torch

from repo_builder import datasets, models, recipes
from repo_builder.core.errors import DataError, ModelError
from repo_builder.core.recipe import DataSpec
from repo_builder.models import training
from repo_builder.models.augmentation import augment

EPOCHS = 3
QUICK = "train.batch_size=1024"  # a dozen steps an epoch: what is tested is that they are the same ones


def recipe_of(name="jsc-toy", *settings):
    return recipes.load(name, [f"train.epochs={EPOCHS}", QUICK, *settings])


@pytest.fixture(scope="module")
def jets():
    recipe = recipe_of()
    return datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed)


def plain(items, title):
    return items


def stopping(epoch, after=5):
    """A progress bar that is interrupted within an epoch, as by Ctrl-C."""

    def progress(items, title):
        for done, item in enumerate(items):
            if title.startswith(f"epoch {epoch}/") and done == after:
                raise KeyboardInterrupt
            yield item

    return progress


def run(recipe, dataset, output, *, resume=False, progress=plain, **options):
    module = models.create(recipe.model, seed=recipe.seed)
    return module, training.train(recipe, module, dataset, output, resume=resume, progress=progress, **options)


def test_training_learns_and_says_what_it_did(jets, tmp_path):
    module, result = run(recipe_of("jsc-toy", "train.batch_size=256"), jets, tmp_path / "new" / "a.safetensors")
    assert result["validation"]["samples"] == 2000
    assert result["test"]["samples"] == 4000
    assert 0.5 < result["test"]["top1"] < 0.75
    assert result["epochs"] == EPOCHS == len(result["history"])
    best = max(result["history"], key=lambda item: (item["validation_top1"], -item["validation_loss"]))
    assert result["best_epoch"] == best["epoch"]
    assert result["validation"]["top1"] == best["validation_top1"]
    facts = models.checkpoint_facts(tmp_path / "new" / "a.safetensors")
    assert facts["held_out"] == jets.held_out
    assert facts["epoch"] == str(best["epoch"])
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["a.safetensors"]
    assert not module.training


def test_the_file_holds_what_was_scored(jets, tmp_path):
    recipe = recipe_of()
    _, result = run(recipe, jets, tmp_path / "a.safetensors", half=True)
    module = models.create(recipe.model, seed=9)
    models.load_checkpoint(module, tmp_path / "a.safetensors", where="")
    test = jets.split("test")
    with torch.inference_mode():
        answers = module(torch.from_numpy(test.inputs["features"])).argmax(1).numpy()
    assert (answers == test.labels).mean() == result["test"]["top1"]


def test_half_halves_the_weights_and_leaves_statistics_alone(jets, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    run(recipe_of(), jets, tmp_path / "a.safetensors", half=True)
    kinds = {name: item.dtype for name, item in safetensors.load_file(tmp_path / "a.safetensors").items()}
    assert kinds["layers.2.weight"] == torch.float16
    assert kinds["standardize.std"] == torch.float32
    assert kinds["layers.0.running_var"] == torch.float32


def test_one_seed_gives_the_same_bytes_whatever_torch_did_before(jets, tmp_path):
    run(recipe_of(), jets, tmp_path / "a.safetensors")
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    run(recipe_of(), jets, tmp_path / "b.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    run(recipe_of("jsc-toy", "seed=1"), jets, tmp_path / "c.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "c.safetensors").read_bytes()


@pytest.mark.parametrize("epoch", [2, EPOCHS])
def test_a_resumed_run_ends_as_an_uninterrupted_one(jets, tmp_path, epoch):
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    run(recipe_of(), jets, whole)
    with pytest.raises(training.TrainingInterrupted, match=f"stopped after epoch {epoch - 1} of {EPOCHS}.*--resume"):
        run(recipe_of(), jets, part, progress=stopping(epoch))
    kept = models.create(recipe_of().model, seed=0)
    models.load_checkpoint(kept, part, where="")  # the best so far can be used
    _, result = run(recipe_of(), jets, part, resume=True)
    assert part.read_bytes() == whole.read_bytes()
    assert len(result["history"]) == EPOCHS
    assert sorted(item.name for item in tmp_path.iterdir()) == ["part.safetensors", "whole.safetensors"]


def test_augmented_images_are_resumed_alike(tmp_path):
    recipe = recipe_of("vgg", "train.batch_size=64", "model.arguments.width=0.02", "data.test=0.7")
    digits = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed)
    assert recipe.train.augment
    run(recipe, digits, tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, digits, tmp_path / "part.safetensors", progress=stopping(3, after=1))
    run(recipe, digits, tmp_path / "part.safetensors", resume=True)
    assert (tmp_path / "part.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_stopped_before_the_first_epoch_ends(jets, tmp_path):
    with pytest.raises(training.TrainingInterrupted, match="nothing was written"):
        run(recipe_of(), jets, tmp_path / "a.safetensors", progress=stopping(1))
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_resume_or_something_else(jets, tmp_path):
    output = tmp_path / "a.safetensors"
    with pytest.raises(ModelError, match="there is no interrupted training"):
        run(recipe_of(), jets, output, resume=True)
    with pytest.raises(KeyboardInterrupt):
        run(recipe_of(), jets, output, progress=stopping(3))
    with pytest.raises(ModelError, match="belongs to another recipe, seed or data"):
        run(recipe_of("jsc-toy", "train.learning_rate=0.1"), jets, output, resume=True)
    (tmp_path / "a.safetensors.resume").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="--resume: "):
        run(recipe_of(), jets, output, resume=True)


def test_evaluation_is_in_eval_mode_and_training_statistics_stay(jets):
    module = models.create(recipe_of().model, seed=0)
    module.train()
    before = {name: item.clone() for name, item in module.state_dict().items()}
    part = training.part_of(jets.split("validation"), recipe_of(), "cpu")
    training.evaluate(module, part)
    assert module.training
    assert all(torch.equal(before[name], item) for name, item in module.state_dict().items())


def test_statistics_come_from_training_samples_only(jets, tmp_path):
    module, _ = run(recipe_of(), jets, tmp_path / "a.safetensors")
    train = jets.split("train").inputs["features"].astype(np.float64)
    np.testing.assert_allclose(module.standardize.mean.numpy(), train.mean(0), rtol=1e-6)
    np.testing.assert_allclose(module.standardize.std.numpy(), train.std(0), rtol=1e-6)


def test_the_test_part_is_not_looked_at_before_the_end(jets, tmp_path):
    asked = []

    class Watched:
        classes, fingerprint, held_out = jets.classes, jets.fingerprint, jets.held_out

        def split(self, part):
            asked.append(part)
            return jets.split(part)

    with pytest.raises(KeyboardInterrupt):
        run(recipe_of(), Watched(), tmp_path / "a.safetensors", progress=stopping(EPOCHS))
    assert asked == ["train", "validation"]


def test_a_diverging_loss_is_reported(jets, tmp_path):
    with pytest.raises(ModelError, match=r"the loss is not finite in epoch \d.*lower train.learning_rate"):
        run(recipe_of("jsc-tiny", "train.learning_rate=1e37"), jets, tmp_path / "a.safetensors")


def test_labels_must_fit_the_outputs(jets, tmp_path):
    recipe = recipe_of()
    other = dataclasses.replace(recipe.model.outputs[0], shape=(7,))
    wide = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, outputs=(other,)))
    with pytest.raises(DataError, match=r"the data has 5 classes, the output logits fp32\[7\]"):
        run(wide, jets, tmp_path / "a.safetensors")


def test_labels_must_be_there(tmp_path):
    recipe = recipe_of()
    np.savez(tmp_path / "a.npz", x=np.zeros((30, 16), np.float32))
    unlabelled = datasets.load(DataSpec(source=str(tmp_path / "a.npz")), inputs=recipe.model.inputs, seed=0)
    with pytest.raises(DataError, match="training needs class labels"):
        run(recipe, unlabelled, tmp_path / "a.safetensors")


def test_features_cannot_be_augmented(jets, tmp_path):
    with pytest.raises(DataError, match="only images"):
        run(recipe_of("jsc-toy", 'train.augment=["shift"]'), jets, tmp_path / "a.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_device_is_named(jets, tmp_path):
    with pytest.raises(ModelError, match="--device: torch sees no CUDA device"):
        run(recipe_of(), jets, tmp_path / "a.safetensors", device="cuda")


# ---- augmentation


def pictures(count=64):
    return torch.arange(count * 3 * 16 * 24, dtype=torch.float32).reshape(count, 3, 16, 24)


def test_shifts_move_whole_images_and_repeat_the_border():
    images = pictures()
    moved = augment(images, ["shift"], torch.Generator().manual_seed(0))
    offsets = set()
    for before, after in zip(images, moved, strict=True):
        # the middle pixel of channel 0 tells where it came from
        row, column = divmod(int(after[0, 8, 12] - before[0, 0, 0]), 24)
        down, right = row - 8, column - 12
        rows = (torch.arange(16) + down).clamp(0, 15)
        columns = (torch.arange(24) + right).clamp(0, 23)
        assert torch.equal(after, before[:, rows][:, :, columns])
        offsets.add((down, right))
    assert {down for down, _ in offsets} == {-2, -1, 0, 1, 2}
    assert {right for _, right in offsets} == {-3, -2, -1, 0, 1, 2, 3}


def test_mirrors_turn_about_half_of_the_images():
    images = pictures()
    turned = augment(images, ["mirror"], torch.Generator().manual_seed(0))
    flipped = [bool(torch.equal(after, before.flip(-1))) for before, after in zip(images, turned, strict=True)]
    kept = [bool(torch.equal(after, before)) for before, after in zip(images, turned, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48


def test_nothing_asked_changes_nothing():
    features = torch.randn(4, 16)
    assert augment(features, [], torch.Generator()) is features
