"""Train a recipe's network: AdamW, cosine schedule, cross-entropy; the best epoch on validation is what is kept.

Every epoch draws from a seed of its own, so a run that was interrupted and resumed ends with the very weights of one
that was not. The test part is scored once, after the choice is made.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from repo_builder import __version__
from repo_builder.core import files
from repo_builder.core.errors import DataError, ModelError
from repo_builder.core.recipe import Recipe
from repo_builder.models import checkpoints
from repo_builder.models.augmentation import augment
from repo_builder.models.parts import DatasetLike, Part, epoch_seed, part_of, reproducible
from repo_builder.models.resuming import State, forget, remember, resume_file, resumed

_EVALUATION_BATCH = 256
Progress = Callable[[Iterable[int], str], Iterable[int]]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message says what was kept."""


def train(
    recipe: Recipe,
    module: nn.Module,
    dataset: DatasetLike,
    output: Path,
    *,
    resume: bool,
    progress: Progress,
    device: str = "cpu",
    half: bool = False,
) -> dict[str, Any]:
    """Train a module and write the best epoch's weights, atomically.

    Args:
        recipe: Its ``train`` table and seed decide everything random.
        module: The network, freshly initialised; it ends in eval mode with the weights that were written. Where it has
            ``fit_inputs``, that is called once with the training samples, in the order of the recipe's inputs.
        dataset: Samples with class labels.
        output: The .safetensors file; its neighbour ``<name>.resume`` holds the state until training ends.
        resume: Whether to go on from that state.
        progress: Wraps an iterable of batches with a bar of the given title.
        device: ``cpu`` or ``cuda``.
        half: Whether weights are rounded to fp16 in the file, which halves it; accuracies are those of the file.

    Returns:
        Path, sha256, best epoch, top-1 and loss on validation and test, and one record an epoch.

    Raises:
        DataError: The labels do not fit the network's outputs.
        ModelError: There is nothing to resume, the loss is not finite, or the device is not there.
        TrainingInterrupted: Ctrl-C; the best epoch so far has been written.
    """
    _check_request(recipe, dataset, device)
    key = _key(recipe, dataset)
    with reproducible(recipe.seed, device):
        module.to(device)
        training, validation = (part_of(dataset.split(name), recipe, device) for name in ("train", "validation"))
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=recipe.train.learning_rate, weight_decay=recipe.train.weight_decay
        )
        state = resumed(output, key, module, optimizer) if resume else _begin(module, training)
        try:
            for epoch in range(state.epoch + 1, recipe.train.epochs + 1):
                _run_epoch(recipe, module, optimizer, training, epoch, progress, state)
                state = _judged(state, epoch, module, *evaluate(module, validation))
                remember(output, key, state, module, optimizer)
        except KeyboardInterrupt:
            raise TrainingInterrupted(_kept(recipe, dataset, state, output, half)) from None
        result = _write(recipe, dataset, state, output, half)
        module.load_state_dict(checkpoints.read(output, where=str(output)))
        scores = {
            name: dict(zip(("top1", "loss"), evaluate(module, part), strict=True)) | {"samples": len(part)}
            for name, part in (
                ("validation", validation),
                ("test", part_of(dataset.split("test"), recipe, device)),
            )
        }
        module.to("cpu").eval()
    forget(output)
    return result | scores | {"history": list(state.history)}


def evaluate(module: nn.Module, part: Part) -> tuple[float, float]:
    """Return top-1 accuracy as a fraction and mean cross-entropy, in eval mode; the mode is restored."""
    was_training = module.training
    module.eval()
    right, loss = 0, 0.0
    with torch.inference_mode():
        for start in range(0, len(part), _EVALUATION_BATCH):
            chosen = slice(start, start + _EVALUATION_BATCH)
            logits, labels = _logits(module, part, chosen), part.labels[chosen]
            right += int((logits.argmax(1) == labels).sum())
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    module.train(was_training)
    return right / len(part), loss / len(part)


def _run_epoch(
    recipe: Recipe,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Part,
    epoch: int,
    progress: Progress,
    state: State,
) -> None:
    spec = recipe.train
    seed = epoch_seed(recipe.seed, epoch)
    torch.manual_seed(seed)  # dropout and the like
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(training), generator=generator)
    # An incomplete batch would give BatchNorm statistics of a few samples.
    size = min(spec.batch_size, len(training))
    batches = len(training) // size
    module.train()
    so_far = f", best {state.best_accuracy:.3f}" if state.best_epoch else ""
    for batch in progress(range(batches), f"epoch {epoch}/{spec.epochs}{so_far}"):
        done = ((epoch - 1) * batches + batch) / (spec.epochs * batches)
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        chosen = order[batch * size : (batch + 1) * size].to(training.labels.device)
        logits = _logits(module, training, chosen, lambda item: augment(item, spec.augment, generator))
        loss = functional.cross_entropy(logits, training.labels[chosen])
        if not torch.isfinite(loss):
            raise ModelError(
                f"the loss is not finite in epoch {epoch}", where="train", hint="lower train.learning_rate"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _logits(
    module: nn.Module,
    part: Part,
    chosen: torch.Tensor | slice,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda item: item,
) -> torch.Tensor:
    result = module(*(change(item[chosen]) for item in part.inputs))
    logits: torch.Tensor = result[0] if isinstance(result, tuple | list) else result
    return logits


def _begin(module: nn.Module, training: Part) -> State:
    fit = getattr(module, "fit_inputs", None)
    if fit is not None:
        fit(*(item.cpu().numpy() for item in training.inputs))
    return State(epoch=0, best_epoch=0, best_accuracy=-1.0, best_loss=math.inf, best={}, history=())


def _judged(state: State, epoch: int, module: nn.Module, accuracy: float, loss: float) -> State:
    """Return the state after an epoch; equal accuracies are told apart by the loss."""
    better = (accuracy, -loss) > (state.best_accuracy, -state.best_loss)
    weights = {name: item.detach().clone() for name, item in module.state_dict().items()} if better else state.best
    return State(
        epoch=epoch,
        best_epoch=epoch if better else state.best_epoch,
        best_accuracy=accuracy if better else state.best_accuracy,
        best_loss=loss if better else state.best_loss,
        best=weights,
        history=(*state.history, {"epoch": epoch, "validation_top1": accuracy, "validation_loss": loss}),
    )


def _write(recipe: Recipe, dataset: DatasetLike, state: State, output: Path, half: bool) -> dict[str, Any]:
    """Write the best weights and what made them."""
    trained = {name for name, item in state.best.items() if item.dtype == torch.float32 and _is_weight(name)}
    tensors = {name: item.half() if half and name in trained else item for name, item in state.best.items()}
    facts: dict[str, Any] = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "epoch": state.best_epoch,
        "epochs": recipe.train.epochs,
        "validation_top1": f"{state.best_accuracy:.6f}",
        "data": dataset.fingerprint,
        "held_out": dataset.held_out,
        "repo_builder": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    checkpoints.write(output, tensors, {name: str(value) for name, value in facts.items()})
    return {
        "recipe": recipe.name,
        "checkpoint": str(output),
        "size_bytes": output.stat().st_size,
        "sha256": files.sha256_of(output),
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
    }


def _is_weight(name: str) -> bool:
    """Whether fp16 is enough: running statistics span more orders of magnitude and are small, so they stay fp32."""
    return name.rsplit(".", 1)[-1] in ("weight", "bias")


def _kept(recipe: Recipe, dataset: DatasetLike, state: State, output: Path, half: bool) -> str:
    if not state.best_epoch:
        return "stopped before the first epoch ended; nothing was written"
    _write(recipe, dataset, state, output, half)
    return (
        f"stopped after epoch {state.epoch} of {recipe.train.epochs}; the best so far (epoch {state.best_epoch}, "
        f"validation {state.best_accuracy:.4f}) is in {output}; --resume goes on from {resume_file(output)}"
    )


def _check_request(recipe: Recipe, dataset: DatasetLike, device: str) -> None:
    logits = recipe.model.outputs[0].shape
    if not dataset.classes:
        raise DataError("training needs class labels, and this data has none", where="data.source")
    if logits != (len(dataset.classes),):
        raise DataError(
            f"the data has {len(dataset.classes)} classes, the output {recipe.model.outputs[0]} has another size",
            where="model.outputs[0].shape",
            hint="set the number of classes in model.arguments and model.outputs",
        )
    if recipe.train.augment and any(len(spec.shape) != 3 for spec in recipe.model.inputs):
        raise DataError(
            "only images (channels, height, width) can be augmented", where="train.augment", hint="remove the key"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("torch sees no CUDA device here", where="--device", hint="use --device cpu")


def _key(recipe: Recipe, dataset: DatasetLike) -> str:
    """Hash what a resumed run must share with the interrupted one."""
    value = recipe.to_dict()
    parts = {name: value[name] for name in ("seed", "train")}
    model = {name: value["model"][name] for name in ("source", "arguments", "inputs", "outputs")}
    return files.sha256_of_json({"data": dataset.fingerprint, "model": model, **parts})
