"""The PyTorch rows of the precision table, under a Python that has torch with CUDA; prints JSON lines.

    python3 benchmarks/torch_rows.py CHECKPOINT DATA_DIR IDLE_WATTS [model ...]

BatchNorm is folded into the convolution before it, inputs and outputs are fp32 as for the other runtimes, and vgg7 runs
in channels-last layout in half precision: what makes the baselines fast, so that nothing is won against slow ones.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_measure import Power, latency_us
from precision_rows import BATCHES, ENERGY_BATCH, MODELS, TestData, load_data, scores
from torch.fx.experimental.optimization import fuse

from repo_builder import models, recipes
from repo_builder.core.tensors import Array


class TorchClock:
    """Marks in torch's present stream."""

    def mark(self) -> torch.cuda.Event:
        """Put a mark into the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the GPU's time between two marks, milliseconds."""
        return float(start.elapsed_time(end))

    def wait(self) -> None:
        """Wait until the GPU is idle."""
        torch.cuda.synchronize()


class SinglePrecisionEnds(torch.nn.Module):
    """A module of any precision that takes and gives fp32, as the other runtimes do."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.kind = next(module.parameters()).dtype

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the module's output."""
        outputs: torch.Tensor = self.module(values.to(self.kind))
        return outputs.float()


@dataclass(frozen=True)
class Form:
    """One row: a module and how it is run.

    Attributes:
        name: The row's name.
        module: The module, on the GPU.
        tf32: Whether fp32 products may use TF32.
        mode: Mode of ``torch.compile``; None runs eagerly.
        batches: Batch sizes that are measured.
    """

    name: str
    module: torch.nn.Module
    tf32: bool = True
    mode: str | None = None
    batches: tuple[int, ...] = BATCHES


def forms(module: torch.nn.Module, *, images: bool) -> Iterator[Form]:
    """Yield the rows of a model."""
    half = copy.deepcopy(module).half()
    fast = half.to(memory_format=torch.channels_last) if images else half
    yield Form("torch eager fp32", module, tf32=False)
    yield Form("torch eager tf32", module)
    yield Form("torch eager fp16", fast)
    yield Form("torch.compile fp16", fast, mode="reduce-overhead")
    if images:
        yield Form("torch.compile fp16 max-autotune", fast, mode="max-autotune", batches=(ENERGY_BATCH,))


def measure(form: Form, data: TestData, power: Power) -> dict[str, object]:
    """Score and time one form."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = form.tf32
    clock, whole = TorchClock(), SinglePrecisionEnds(form.module)
    row: dict[str, Any] = {"row": form.name, "latency_us": {}, "with_copies_us": {}, "build_seconds": {}}
    for size in form.batches:
        torch._dynamo.reset()
        started = time.perf_counter()
        step = torch.compile(whole, mode=form.mode) if form.mode else whole
        host = torch.from_numpy(data.values[:size].copy()).pin_memory()
        device = host.cuda()
        back = torch.empty((size, data.classes_count), pin_memory=True)
        with torch.inference_mode():
            for _ in range(3):
                step(device)
            clock.wait()
            if form.mode:
                row["build_seconds"][str(size)] = round(time.perf_counter() - started, 2)

            def alone(step: Any = step, device: torch.Tensor = device) -> None:  # noqa: ANN401
                step(device)

            def with_copies(
                step: Any = step,  # noqa: ANN401
                host: torch.Tensor = host,
                device: torch.Tensor = device,
                back: torch.Tensor = back,
            ) -> None:
                device.copy_(host, non_blocking=True)
                back.copy_(step(device), non_blocking=True)

            row["latency_us"][str(size)] = latency_us(alone, clock)
            row["with_copies_us"][str(size)] = latency_us(with_copies, clock)
            if size == ENERGY_BATCH:
                row["energy"] = power.over(alone, clock, size)
                row["accuracy"] = scores(all_outputs(step, data, size), data)
    row["clocks_mhz"] = power.clocks_mhz()
    return row


def all_outputs(step: Callable[[torch.Tensor], torch.Tensor], data: TestData, size: int) -> Array:
    """Return the outputs for all test samples, in batches of one size; the last is filled up with zeros."""
    parts = []
    for start in range(0, len(data.values), size):
        values = data.values[start : start + size]
        filled = np.zeros((size, *values.shape[1:]), np.float32)
        filled[: len(values)] = values
        parts.append(step(torch.from_numpy(filled).cuda())[: len(values)].cpu().numpy())
    return np.concatenate(parts)


def main() -> None:
    """Measure all forms of the named models, or of all."""
    checkpoint, data_dir = Path(sys.argv[1]), Path(sys.argv[2])
    power = Power(float(sys.argv[3]))
    environment = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": sys.version.split()[0],
    }
    print(json.dumps({"environment": environment}), flush=True)
    for model in sys.argv[4:] or MODELS:
        data = load_data(model, data_dir)
        recipe = recipes.load(MODELS[model])
        module = models.create(recipe.model, seed=0)
        weights = checkpoint if model == "vgg7" else models.checkpoint_path(recipe.model, None)
        models.load_checkpoint(module, weights, where=str(weights))
        folded = fuse(module).cuda().eval()
        for form in forms(folded, images=data.values.ndim == 4):
            print(json.dumps({"model": model, **attempt(form, data, power)}), flush=True)


def attempt(form: Form, data: TestData, power: Power) -> dict[str, object]:
    """Measure a row; one that fails says so, and the others go on."""
    try:
        return measure(form, data, power)
    except Exception as error:  # torch's errors share no base class
        return {"row": form.name, "failed": f"{type(error).__name__}: {str(error)[:300]}"}


if __name__ == "__main__":
    main()
