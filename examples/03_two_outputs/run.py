"""A module of two inputs and two outputs, built from Python with what the program holds: no files, no checkpoint."""

import numpy as np
import torch
from torch import nn

import repo_builder as rb


class Sensor(nn.Module):
    """Tells the kind of a signal, and how strong it is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(24, 64)
        self.kind = nn.Linear(64, 3)
        self.strength = nn.Linear(64, 1)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        h = torch.relu(self.body(torch.cat([left, right], 1)))
        return {"kind": self.kind(h), "strength": self.strength(h)}


torch.manual_seed(0)
module = Sensor().eval()
generator = np.random.default_rng(0)
left, right = generator.normal(size=(2, 600, 12)).astype(np.float32)
with torch.inference_mode():
    labels = module(torch.from_numpy(left), torch.from_numpy(right))["kind"].argmax(1).numpy()

built = rb.build(
    rb.Recipe.load("sensor.toml"),
    model=module,
    data={"left": left, "right": right, "y": labels},
    target="onnxruntime",
)
for layer in built.engine.layers:
    print(f"{layer.name:10} asked {layer.asked:5} got {layer.precision}")
for form in built.engine.accuracy:
    print(
        f"{form.form:12} top-1 of 'kind' {form.top1:.4f}",
        *(f"{item.name} {item.sqnr_db:.1f} dB" for item in form.outputs),
    )
