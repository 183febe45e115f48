"""A residual network of 32 x 32 images with seeded weights, for ``tune_vs_grid.py``."""

from __future__ import annotations

from pathlib import Path

from repo_builder.core import files


def make_resnet(folder: Path) -> None:
    """Write a residual network of nine convolutions and its configuration into a repository."""
    import torch
    from torch import nn

    from repo_builder.repository import config, from_onnx

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.one = nn.Conv2d(inputs, outputs, 3, stride, 1)
            self.two = nn.Conv2d(outputs, outputs, 3, 1, 1)
            self.way = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.two(torch.relu(self.one(x))) + self.way(x))

    torch.manual_seed(0)
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    network = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), *blocks, *head).eval()
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    torch.onnx.export(
        network, (torch.zeros(1, 3, 32, 32),), str(path), input_names=["image"], output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    spec = from_onnx.from_onnx(
        path, name=folder.name, max_batch_size=32, parameters={"intra_op_thread_count": "1"}, max_queue_delay_us=100
    )
    files.write_text(folder / "config.pbtxt", config.render(spec))
