"""The networks of the GPU zoo, under a Python that has torch with CUDA, torchvision and transformers.

    python3 benchmarks/gpu_networks.py export FOLDER [network ...]       # FOLDER/NAME.onnx, FOLDER/NAME.npz
    python3 benchmarks/gpu_networks.py baselines RESULTS.json [network ...]

Weights are seeded and random, statistics of BatchNorm real. Baselines run in fp16 with channels-last images and CUDA
graphs; of torch.compile the default mode and max-autotune. Each runs in a process of its own that ends with its time:
two minutes for max-autotune, so that a network takes three and a half at most. What was measured until then is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import zoo_networks
from gpu_measure import latency_us
from gpu_sizes import batches
from torch import Tensor, nn
from torch_rows import TorchClock

from repo_builder.export.plain import exportable

SAMPLES = 96
_MOST_COMPILE_S = 60  # of the default mode, behind which max-autotune does not end in its two minutes
TOKENS = 128
# form → mode of torch.compile, and seconds that its process has
FORMS: dict[str, tuple[str | None, float]] = {
    "eager": (None, 30),
    "compile": ("reduce-overhead", 75),
    "compile max-autotune": ("max-autotune", 120),
}


@dataclass(frozen=True)
class Network:
    """A network and what its samples look like: a shape of floats, or of token ids beside a mask."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: int = 0
    as_torch: bool = False  # whether torch's exporter writes attention its own way, not repo-builder's

    def samples(self, count: int, seed: int = 1) -> tuple[Tensor, ...]:
        """Return random inputs, batch first."""
        random = torch.Generator().manual_seed(seed)
        if self.tokens:
            ids = torch.randint(1, self.tokens, (count, *self.shape), generator=random)
            lengths = torch.randint(self.shape[0] // 4, self.shape[0] + 1, (count, 1), generator=random)
            return ids, (torch.arange(self.shape[0]) < lengths).long()
        return (torch.randn(count, *self.shape, generator=random),)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its inputs."""
        return ("input_ids", "attention_mask") if self.tokens else ("image",)


class Encoder(nn.Module):
    """A transformer of Hugging Face's that gives one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the first output."""
        first: Tensor = self.model(*inputs, return_dict=False)[0]
        return first


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return Encoder(BertModel(BertConfig(attn_implementation="eager"), add_pooling_layer=False))


def _vit_transformers() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return Encoder(ViTForImageClassification(ViTConfig(attn_implementation="eager", num_labels=1000)))


def _vgg7() -> nn.Module:
    from repo_builder import models, recipes

    return models.create(recipes.load("vgg-cifar10").model, seed=0)


IMAGE = (3, 224, 224)
NETWORKS: dict[str, Network] = {
    "resnet50": Network(torchvision.models.resnet50, IMAGE),
    "mobilenet_v2": Network(torchvision.models.mobilenet_v2, IMAGE),
    "efficientnet_b0": Network(torchvision.models.efficientnet_b0, IMAGE),
    "vit_b_16": Network(torchvision.models.vit_b_16, IMAGE),
    "vit_b_16_as_torch": Network(torchvision.models.vit_b_16, IMAGE, as_torch=True),
    "vit_b_16_transformers": Network(_vit_transformers, IMAGE),
    "bert_base": Network(_bert, (TOKENS,), tokens=30522),
    "yolov8n": Network(zoo_networks.YoloV8n, (3, 640, 640)),
    "unet": Network(zoo_networks.UNet, (3, 256, 256)),
    "vgg7": Network(_vgg7, (3, 32, 32)),
}


def seeded(name: str) -> nn.Module:
    """Return a network in eval mode, the same each time."""
    torch.manual_seed(0)
    network = NETWORKS[name]
    module = network.make()
    norms = [item for item in module.modules() if isinstance(item, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
    if norms:
        with torch.no_grad():
            module.train()(*network.samples(8, seed=2))
    return module.eval()


def export(folder: Path, name: str) -> None:
    """Write a network's ONNX and its samples with labels that say nothing."""
    network, module = NETWORKS[name], seeded(name)
    inputs = network.samples(max(SAMPLES, *batches(name)))
    axes = {item: {0: "batch"} for item in (*network.names, "output")}
    with torch.no_grad(), contextlib.nullcontext() if network.as_torch else exportable(module, ["output"]):
        torch.onnx.export(
            module,
            tuple(item[:2] for item in inputs),
            str(folder / f"{name}.onnx"),
            dynamo=False,
            opset_version=17,
            input_names=list(network.names),
            output_names=["output"],
            dynamic_axes=axes,
        )
    arrays = {item: value.numpy() for item, value in zip(network.names, inputs, strict=True)}
    np.savez(folder / f"{name}.part.npz", **arrays)
    (folder / f"{name}.part.npz").rename(folder / f"{name}.npz")


def one(name: str, form: str) -> None:
    """Print torch's times of a network in one form, a line of JSON a batch size as soon as it is measured."""
    network, mode = NETWORKS[name], FORMS[form][0]
    module = seeded(name).half().cuda()
    if not network.tokens:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for size in batches(name):
        inputs = tuple(item.cuda() for item in network.samples(size))
        if not network.tokens:
            inputs = tuple(item.half().to(memory_format=torch.channels_last) for item in inputs)
        torch._dynamo.reset()
        started = time.perf_counter()
        step = torch.compile(module, mode=mode) if mode else module
        try:
            with torch.inference_mode():
                for _ in range(3):
                    step(*inputs)
                torch.cuda.synchronize()
                seconds = time.perf_counter() - started

                def once(step: Any = step, inputs: tuple[Tensor, ...] = inputs) -> None:  # noqa: ANN401
                    step(*inputs)

                found = {**latency_us(once, TorchClock()), "compile_s": round(seconds, 1)}
        except Exception as error:  # torch's errors share no base class
            found = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
        print(json.dumps({str(size): found}), flush=True)


def limited(name: str, form: str) -> dict[str, Any]:
    """Return what ``one`` printed in a process of its own until its time was up, and whether it was."""
    limit = FORMS[form][1]
    command = [sys.executable, __file__, "one", name, form]
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, stdout=printed, start_new_session=True)
        try:
            process.wait(limit)
            ended: dict[str, Any] = {}
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the compiler's workers are of its group
            process.wait()
            ended = {"stopped": f"after {limit:g} s"}
        printed.seek(0)
        lines = [line for line in printed if line.startswith("{") and line.endswith("}\n")]
    return {key: value for line in lines for key, value in json.loads(line).items()} | ended


def _slow(compiled: dict[str, Any]) -> str:
    """Say why max-autotune, which takes longer, is not tried behind the default mode; empty where it is."""
    seconds = sum(row.get("compile_s", 0.0) for row in compiled.values() if isinstance(row, dict))
    if "stopped" in compiled or seconds > _MOST_COMPILE_S:
        return f"the default mode took {seconds:.0f} s {compiled.get('stopped', '')}".strip()
    return ""


def main() -> None:
    """Export, or measure torch."""
    torch.backends.mha.set_fastpath_enabled(False)
    verb, place = sys.argv[1], Path(sys.argv[2])
    if verb == "one":
        one(*sys.argv[2:4])
        return
    if verb == "export":
        place.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[3:] or NETWORKS:
        started = time.perf_counter()
        if verb == "export":
            export(place, name)
        else:
            known = json.loads(place.read_text()) if place.is_file() else {}
            known[name] = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name()}
            for form in FORMS:
                slow = _slow(known[name].get("compile", {})) if form == "compile max-autotune" else ""
                known[name][form] = {"left out": slow} if slow else limited(name, form)
                place.write_text(json.dumps(known, indent=1))
        print(f"{verb} {name} {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
