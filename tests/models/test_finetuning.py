"""The loop of fine-tuning, on networks that take milliseconds: seeds, interruptions, the chosen epoch, losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from repo_builder.core.errors import DataError, ModelError  # noqa: E402
from repo_builder.core.recipe import FinetuneSpec  # noqa: E402
from repo_builder.models import finetuning  # noqa: E402
from repo_builder.models.distance import Distance, Task  # noqa: E402
from repo_builder.models.resuming import resume_file  # noqa: E402
from repo_builder.models.training import TrainingInterrupted  # noqa: E402

X = np.random.default_rng(0).normal(size=(96, 6)).astype(np.float32)
LABELS = (X[:, 0] > X[:, 1]).astype(np.int64) + (X[:, 2] > 0)
PART = SimpleNamespace(inputs={"x": X}, labels=LABELS)


class Rounded(nn.Module):
    """A linear layer whose weight is rounded in steps that can be trained: a fake-quantized network in small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.weight, self.change = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.zeros(()))
        self.rounds = True

    def weights(self) -> list[nn.Parameter]:
        return [self.weight]

    def steps(self) -> list[nn.Parameter]:
        return [self.change]

    def settle(self) -> None:
        pass

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        step = 0.7 * self.change.exp()
        weight = self.weight
        if self.rounds:
            weight = (weight / step + (torch.round(weight / step) - weight / step).detach()) * step
        return {"y": inputs["x"] @ weight.T}


def teacher() -> Rounded:
    found = Rounded()
    found.rounds = False
    return found


def plain(items: Iterable[int], title: str) -> Iterable[int]:
    return items


def tune(
    output: Path, module: Rounded, *, seed: int = 0, classes: bool = True, part: Any = PART, key: str = "k",
    progress: Callable[[Iterable[int], str], Iterable[int]] = plain, say: Callable[[str], None] = lambda line: None,
    **spec: Any,
) -> finetuning.Tuned:  # fmt: skip
    given = {"epochs": 4, "batch_size": 16, "learning_rate": 0.02, "device": "cpu", **spec}
    task = Task(scored="y", classes=classes, spec=FinetuneSpec(**given))
    return finetuning.finetune(
        module, teacher(), task, part, part, seed=seed, output=output, key=key, progress=progress, say=say
    )


def test_it_learns_and_says_every_epoch(tmp_path: Path) -> None:
    said: list[str] = []
    module = Rounded()
    result = tune(tmp_path / "f", module, say=said.append)
    losses = [item["validation_loss"] for item in result.history]
    assert result.best_epoch > 0
    assert min(losses[1:]) < losses[0] / 2
    assert [item["epoch"] for item in result.history] == [0, 1, 2, 3, 4]
    assert [line.split("  ")[0] for line in said] == [f"epoch {epoch}/4" for epoch in range(5)]
    assert not module.weight.requires_grad or module.change.item() != 0, "ranges are learned"


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    found = []
    for place, seed in enumerate((0, 0, 1)):
        module = Rounded()
        tune(tmp_path / str(place), module, seed=seed)
        found.append(module.weight.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_frozen_ranges_stay(tmp_path: Path) -> None:
    module = Rounded()
    tune(tmp_path / "f", module, ranges="frozen")
    assert module.change.item() == 0


def test_interrupted_and_run_again_it_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, parts = Rounded(), Rounded()
    expected = tune(tmp_path / "whole", whole)

    def stops(items: Iterable[int], title: str) -> Iterable[int]:
        for done, item in enumerate(items):
            if "epoch 3/" in title and done == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(TrainingInterrupted, match=r"stopped after epoch 2 of 4.*the same build goes on"):
        tune(tmp_path / "parts", parts, progress=stops)
    assert resume_file(tmp_path / "parts").is_file()
    again = Rounded()
    found = tune(tmp_path / "parts", again)
    assert found.resumed_after == 2
    assert found.history == expected.history
    assert torch.equal(again.weight, whole.weight)
    assert torch.equal(again.change, whole.change)


def test_a_state_of_another_key_or_a_damaged_one_is_not_gone_on_from(tmp_path: Path) -> None:
    tune(tmp_path / "f", Rounded(), key="a", epochs=1)
    assert tune(tmp_path / "f", Rounded(), key="b", epochs=1).resumed_after == 0
    resume_file(tmp_path / "f").write_bytes(b"cut short")
    assert tune(tmp_path / "f", Rounded(), key="b", epochs=1).resumed_after == 0


def test_where_no_epoch_is_better_nothing_is_changed(tmp_path: Path) -> None:
    module, before = Rounded(), Rounded()
    before.rounds = module.rounds = False  # as good as the teacher from the start
    result = tune(tmp_path / "f", module, learning_rate=0.5)
    assert result.best_epoch == 0
    assert torch.equal(module.weight, before.weight)


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    part = SimpleNamespace(inputs={"x": np.where(np.arange(6) == 5, np.inf, X).astype(np.float32)}, labels=LABELS)
    with pytest.raises(ModelError, match="the loss is not finite in epoch 1") as caught:
        tune(tmp_path / "f", Rounded(), part=part)
    assert "learning_rate" in str(caught.value.hint)


def test_cross_entropy_needs_labels(tmp_path: Path) -> None:
    part = SimpleNamespace(inputs={"x": X}, labels=None)
    with pytest.raises(DataError, match="cross-entropy needs class labels"):
        tune(tmp_path / "f", Rounded(), part=part, loss="cross-entropy")
    result = tune(tmp_path / "f", Rounded(), part=part)
    assert all(item["validation_top1"] is None for item in result.history)
    assert result.history[result.best_epoch]["validation_loss"] == min(i["validation_loss"] for i in result.history)


def test_a_device_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ModelError, match="torch sees no CUDA device"):
        finetuning.device_of(FinetuneSpec(device="cuda"))


def distance(*, classes: bool = True, loss: str = "distillation", outputs: Any = None) -> Distance:
    task = Task(scored="y", classes=classes, spec=FinetuneSpec(loss=loss))  # type: ignore[arg-type]
    return Distance.of(task, outputs or {"y": torch.randn(4, 3)})


def test_losses_are_what_they_say() -> None:
    torch.manual_seed(0)
    mine, its, labels = torch.randn(8, 3), torch.randn(8, 3), torch.arange(8) % 3
    found = distance(loss="cross-entropy")({"y": mine}, {}, labels)
    assert float(found) == pytest.approx(float(functional.cross_entropy(mine, labels)))
    p, q = its.softmax(1), mine.softmax(1)
    assert float(distance()({"y": mine}, {"y": its}, None)) == pytest.approx(
        float((p * (p / q).log()).sum(1).mean()), rel=1e-5
    )
    # a network that ends in Softmax gives probabilities: the same distance
    ends = distance(outputs={"y": p})
    assert ends.probabilities
    assert float(ends({"y": q}, {"y": p}, None)) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)
    other = distance(classes=False)({"y": mine, "n": labels}, {"y": its, "n": labels}, None)
    assert float(other) == pytest.approx(float((mine - its).square().mean() / its.var(correction=0)), rel=1e-5)
    assert math.isfinite(float(distance(classes=False)({"y": mine}, {"y": torch.ones(8, 3)}, None)))


def test_the_teacher_is_left_as_it_was(tmp_path: Path) -> None:
    taught = teacher()
    before = copy.deepcopy(taught.state_dict())
    task = Task(scored="y", classes=True, spec=FinetuneSpec(epochs=1, device="cpu"))
    finetuning.finetune(
        Rounded(), taught, task, PART, PART, seed=0, output=tmp_path / "f", key="", progress=plain, say=lambda _: None
    )
    assert all(torch.equal(before[name], item) for name, item in taught.state_dict().items())
