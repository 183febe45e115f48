"""A MobileNetV2-like network of 32×32 images, trained on CIFAR-10 in a few minutes of two cores, as an ONNX graph.

Inverted residuals with depthwise convolutions, BatchNorm and ReLU6, a linear bottleneck without activation: 99 thousand
weights, 1.2 million products an image.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

# (channels, stride) of each inverted residual
BLOCKS = ((24, 2), (24, 1), (40, 2), (40, 1), (64, 2), (64, 1))
WIDER, LAST, CLASSES = 4, 160, 10


def unit(
    before: int, behind: int, kernel: int, *, stride: int = 1, groups: int = 1, clips: bool = True
) -> nn.Sequential:
    """Convolution, BatchNorm and, where it clips, ReLU6."""
    layer = nn.Conv2d(before, behind, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(behind), *([nn.ReLU6()] if clips else []))


class Inverted(nn.Module):
    """Wider, depthwise, narrower; with a residual where shapes allow."""

    def __init__(self, before: int, behind: int, stride: int) -> None:
        super().__init__()
        inner = before * WIDER
        self.wider = unit(before, inner, 1)
        self.depthwise = unit(inner, inner, 3, stride=stride, groups=inner)
        self.narrower = unit(inner, behind, 1, clips=False)
        self.residual = stride == 1 and before == behind

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(n, before, h, w) → (n, behind, h / stride, w / stride)."""
        made = self.narrower(self.depthwise(self.wider(values)))
        return values + made if self.residual else made


def network() -> nn.Module:
    """Return the network without weights of use: (n, 3, 32, 32) → (n, 10)."""
    blocks, width = [], 16
    for channels, stride in BLOCKS:
        blocks.append(Inverted(width, channels, stride))
        width = channels
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(LAST, CLASSES)]
    return nn.Sequential(unit(3, 16, 3, stride=2), *blocks, unit(width, LAST, 1), *pool)


def train(images: np.ndarray, labels: np.ndarray, *, epochs: int, seed: int, kept: Path) -> nn.Module:
    """Train on normalised images (n, 3, 32, 32), float32, and their classes: SGD, one cycle, flips and shifts.

    After each epoch the state goes to ``kept``: a run that was stopped goes on from there, to the very same weights.
    """
    torch.manual_seed(seed)
    net, count, batch = network().train(), len(images), 128
    steps = epochs * (count // batch)
    descent = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(descent, max_lr=0.3, total_steps=steps + 1)
    data, classes = torch.from_numpy(images), torch.from_numpy(labels)
    done = 0
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        done = state["epochs"]
        for part, name in ((net, "net"), (descent, "descent"), (rate, "rate")):
            part.load_state_dict(state[name])
    for epoch in range(done, epochs):
        torch.manual_seed(seed + 1 + epoch)
        for chosen in torch.randperm(count)[: count // batch * batch].split(batch):
            some = functional.pad(data[chosen], (2, 2, 2, 2))
            down, right = (int(item) for item in torch.randint(0, 5, (2,)))
            some = some[:, :, down : down + 32, right : right + 32]
            some = some.flip(3) if torch.rand(()) < 0.5 else some
            loss = functional.cross_entropy(net(some), classes[chosen], label_smoothing=0.05)
            descent.zero_grad()
            loss.backward()
            descent.step()
            rate.step()
        state = {"net": net.state_dict(), "descent": descent.state_dict(), "rate": rate.state_dict()}
        torch.save({**state, "epochs": epoch + 1}, kept)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    return net.eval()


def exported(images: np.ndarray, labels: np.ndarray, checkpoint: Path, *, epochs: int, seed: int) -> onnx.ModelProto:
    """Return the trained network as ONNX; the checkpoint is written where there is none."""
    net = network().eval()
    if checkpoint.is_file():
        net.load_state_dict(load_file(checkpoint))
    else:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        kept = checkpoint.with_suffix(".training")
        net = train(images, labels, epochs=epochs, seed=seed, kept=kept)
        save_file(net.state_dict(), checkpoint)
        kept.unlink()
    path = checkpoint.with_suffix(".onnx")
    axes = {"image": {0: "n"}, "scores": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(1, 3, 32, 32),),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes=axes,
        )
    return onnx.load(path)
