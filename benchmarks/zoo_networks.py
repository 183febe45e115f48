"""The networks of ``cpu_zoo.py`` in plain torch, with seeded weights: the published shapes, no file to download.

Weights are drawn as torch draws them; BatchNorm statistics are those of seeded noise, so that activations have the
spread of a network that was trained with them. Signal-to-noise ratios compare within one network only.
"""

# ruff: noqa: D102, D103 - the networks are known by their names

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repo_builder.models import jsc, vgg

Act = Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network of the zoo.

    Attributes:
        make: Returns the module.
        shape: The input's shape without the batch; ``size`` in its last places where it is an image.
        tokens: The input holds token numbers below this; 0 for float inputs.
        moving: Axes of the input, batch aside, whose size varies.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: int = 0
    moving: tuple[int, ...] = ()


def conv(
    inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, act: Act | None = nn.ReLU
) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([act()] if act else []))


class Residual(nn.Module):
    """``act(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))


def resnet(depths: tuple[int, ...], *, bottleneck: bool) -> nn.Module:
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        outputs = width * (4 if bottleneck else 1)
        for block in range(depth):
            stride = 2 if stage and not block else 1
            if bottleneck:
                body = nn.Sequential(
                    conv(inputs, width, 1), conv(width, width, 3, stride), conv(width, outputs, 1, act=None)
                )
            else:
                body = nn.Sequential(conv(inputs, width, 3, stride), conv(width, outputs, act=None))
            other = conv(inputs, outputs, 1, stride, act=None) if stride > 1 or inputs != outputs else None
            layers.append(Residual(body, other, nn.ReLU()))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def resnet50() -> nn.Module:
    return resnet((3, 4, 6, 3), bottleneck=True)


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, inner: int, act: Act, gate: Act) -> None:
        super().__init__()
        self.pool, self.down, self.up = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.Conv2d(inner, channels, 1),
        )
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(self.pool(x)))))


def inverted(
    inputs: int, hidden: int, outputs: int, size: int, stride: int, act: Act, squeeze: nn.Module | None = None
) -> nn.Module:
    layers: list[nn.Module] = [] if hidden == inputs else [conv(inputs, hidden, 1, act=act)]
    layers += [
        conv(hidden, hidden, size, stride, hidden, act),
        *([squeeze] if squeeze else []),
        conv(hidden, outputs, 1, act=None),
    ]
    body = nn.Sequential(*layers)
    return Residual(body) if stride == 1 and inputs == outputs else body


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.ReLU6)]
    inputs = 32
    for ratio, outputs, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            layers.append(inverted(inputs, inputs * ratio, outputs, 3, 1 if block else stride, nn.ReLU6))
            inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, conv(inputs, 1280, 1, act=nn.ReLU6), *head)


def mobilenet_v3_small() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 16, 3, 2, act=nn.Hardswish)]
    inputs = 16
    for size, hidden, outputs, squeezed, hard, stride in (
        (3, 16, 16, 8, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 24, 1, 2), (5, 240, 40, 64, 1, 1),
        (5, 240, 40, 64, 1, 1), (5, 120, 48, 32, 1, 1), (5, 144, 48, 40, 1, 1), (5, 288, 96, 72, 1, 2),
        (5, 576, 96, 144, 1, 1), (5, 576, 96, 144, 1, 1),
    ):  # fmt: skip
        squeeze = Squeeze(hidden, squeezed, nn.ReLU, nn.Hardsigmoid) if squeezed else None
        layers.append(inverted(inputs, hidden, outputs, size, stride, nn.Hardswish if hard else nn.ReLU, squeeze))
        inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, 1000)]
    return nn.Sequential(*layers, conv(96, 576, 1, act=nn.Hardswish), *head)


def efficientnet_b0() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.SiLU)]
    inputs = 32
    for ratio, size, outputs, count, stride in (
        (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            squeeze = Squeeze(inputs * ratio, max(1, inputs // 4), nn.SiLU, nn.Sigmoid)
            layers.append(inverted(inputs, inputs * ratio, outputs, size, 1 if block else stride, nn.SiLU, squeeze))
            inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, conv(inputs, 1280, 1, act=nn.SiLU), *head)


class Dense(nn.Module):
    """A layer of DenseNet: BatchNorm in front, its input kept beside its output."""

    def __init__(self, inputs: int, growth: int = 32) -> None:
        super().__init__()
        first = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4 * growth, 1, bias=False)]
        second = [nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)]
        self.body = nn.Sequential(*first, *second)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet121() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            layers.append(Dense(inputs))
            inputs += 32
        if stage < 3:
            layers += [
                nn.BatchNorm2d(inputs),
                nn.ReLU(),
                nn.Conv2d(inputs, inputs // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            inputs //= 2
    return nn.Sequential(
        *layers, nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)
    )


class Fire(nn.Module):
    """A module of SqueezeNet."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(inputs, inner, 1), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(inner, outputs, 1), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(inner, outputs, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.one(x), self.three(x)], 1)


def squeezenet() -> nn.Module:
    pool = [nn.MaxPool2d(3, 2, ceil_mode=True)]
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), *pool, Fire(64, 16, 64), Fire(128, 16, 64), *pool, Fire(128, 32, 128),
        Fire(256, 32, 128), *pool, Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class UNet(nn.Module):
    """U-Net with widths 16 to 128 and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 128)
        double = lambda a, b: nn.Sequential(conv(a, b), conv(b, b))  # noqa: E731
        self.down = nn.ModuleList(double(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * b, b, 2, 2) for b in widths[-2::-1])
        self.merge = nn.ModuleList(double(2 * b, b) for b in widths[-2::-1])
        self.last = nn.Conv2d(widths[0], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for place, block in enumerate(self.down):
            x = block(x if not place else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for up, merge, other in zip(self.up, self.merge, kept[-2::-1], strict=True):
            x = merge(torch.cat([up(x), other], 1))
        return self.last(x)


class C2f(nn.Module):
    """YOLOv8's block of bottlenecks side by side."""

    def __init__(self, inputs: int, outputs: int, count: int, *, shortcut: bool) -> None:
        super().__init__()
        inner = outputs // 2
        self.first, self.last = (
            conv(inputs, outputs, 1, act=nn.SiLU),
            conv((2 + count) * inner, outputs, 1, act=nn.SiLU),
        )
        pair = lambda: nn.Sequential(conv(inner, inner, act=nn.SiLU), conv(inner, inner, act=nn.SiLU))  # noqa: E731
        self.blocks = nn.ModuleList(Residual(pair()) if shortcut else pair() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class YoloV8n(nn.Module):
    """YOLOv8n: backbone, pyramid and heads up to the raw boxes and classes."""

    def __init__(self) -> None:
        super().__init__()
        c = lambda a, b, s=1: conv(a, b, 3, s, act=nn.SiLU)  # noqa: E731
        self.stem = nn.Sequential(
            c(3, 16, 2), c(16, 32, 2), C2f(32, 32, 1, shortcut=True), c(32, 64, 2), C2f(64, 64, 2, shortcut=True)
        )
        self.mid = nn.Sequential(c(64, 128, 2), C2f(128, 128, 2, shortcut=True))
        self.deep = nn.Sequential(c(128, 256, 2), C2f(256, 256, 1, shortcut=True))
        self.sppf_in, self.sppf_out = conv(256, 128, 1, act=nn.SiLU), conv(512, 256, 1, act=nn.SiLU)
        self.pool, self.up = nn.MaxPool2d(5, 1, 2), nn.Upsample(scale_factor=2, mode="nearest")
        self.top, self.out3 = C2f(384, 128, 1, shortcut=False), C2f(192, 64, 1, shortcut=False)
        self.d3, self.out4 = c(64, 64, 2), C2f(192, 128, 1, shortcut=False)
        self.d4, self.out5 = c(128, 128, 2), C2f(384, 256, 1, shortcut=False)
        head = lambda w, mid, o: nn.Sequential(c(w, mid), c(mid, mid), nn.Conv2d(mid, o, 1))  # noqa: E731
        self.boxes = nn.ModuleList(head(w, 64, 64) for w in (64, 128, 256))
        self.classes = nn.ModuleList(head(w, 80, 80) for w in (64, 128, 256))

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = self.mid(a)
        d = self.sppf_in(self.deep(b))
        p1 = self.pool(d)
        p2 = self.pool(p1)
        d = self.sppf_out(torch.cat([d, p1, p2, self.pool(p2)], 1))
        t = self.top(torch.cat([self.up(d), b], 1))
        o3 = self.out3(torch.cat([self.up(t), a], 1))
        o4 = self.out4(torch.cat([self.d3(o3), t], 1))
        o5 = self.out5(torch.cat([self.d4(o4), d], 1))
        parts = zip((o3, o4, o5), self.boxes, self.classes, strict=True)
        return torch.cat([torch.cat([box(o), kind(o)], 1).flatten(2) for o, box, kind in parts], 2)


class Block(nn.Module):
    """A transformer block; norms in front (ViT, Whisper) or behind (BERT)."""

    def __init__(self, width: int, heads: int, *, first: bool) -> None:
        super().__init__()
        self.heads, self.first = heads, first
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def attend(self, x: Tensor) -> Tensor:
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        mlp = lambda y: self.down(nn.functional.gelu(self.up(y)))  # noqa: E731
        if self.first:
            x = x + self.attend(self.norm1(x))
            return x + mlp(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + mlp(x))


class Vit(nn.Module):
    """ViT-small with patches of 16."""

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, width, 16, 16), nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.place = nn.Parameter(torch.randn(1, 1 + 196, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, first=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.norm(self.blocks(x + self.place[:, : x.shape[1]]))[:, 0])


class Bert(nn.Module):
    """An encoder of tokens whose length varies, with a pooled head."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30522, width), nn.Parameter(torch.randn(512, width) * 0.02)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 2)
        self.blocks = nn.Sequential(*(Block(width, heads, first=False) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.blocks(self.norm(self.words(x) + self.places[: x.shape[1]]))[:, 0]))


class Whisper(nn.Module):
    """Whisper-tiny's encoder."""

    def __init__(self, width: int = 384, depth: int = 4, heads: int = 6) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(80, width, 3, padding=1), nn.Conv1d(width, width, 3, 2, 1)
        self.places = nn.Parameter(torch.randn(1500, width) * 0.02)
        self.blocks, self.norm = (
            nn.Sequential(*(Block(width, heads, first=True) for _ in range(depth))),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.two(nn.functional.gelu(self.one(x)))).transpose(1, 2)
        return self.norm(self.blocks(x + self.places[: x.shape[1]]))


class Lstm(nn.Module):
    """Two LSTM layers between linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lstm = nn.Linear(40, 128), nn.LSTM(128, 256, 2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 30))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(torch.relu(self.inner(x)))[0])


def conv1d() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, size, stride in (
        (1, 32, 15, 4),
        (32, 64, 9, 2),
        (64, 128, 9, 2),
        (128, 128, 5, 2),
        (128, 256, 5, 2),
    ):
        layers += [nn.Conv1d(inputs, outputs, size, stride, size // 2), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(256, 35))


IMAGE = (3, 0, 0)
JSC = (64, "bn", "relu", 32, "bn", "relu", 32, "bn", "relu", 5)  # the recipe's
NETWORKS: dict[str, Network] = {
    "vgg": Network(make=vgg.build, shape=(3, 32, 32)),
    "jsc": Network(make=lambda: jsc.build(layers=JSC), shape=(16,)),
    "resnet18": Network(make=lambda: resnet((2, 2, 2, 2), bottleneck=False), shape=IMAGE),
    "resnet50": Network(make=resnet50, shape=IMAGE),
    "mobilenet_v2": Network(make=mobilenet_v2, shape=IMAGE),
    "mobilenet_v3_small": Network(make=mobilenet_v3_small, shape=IMAGE),
    "efficientnet_b0": Network(make=efficientnet_b0, shape=IMAGE),
    "densenet121": Network(make=densenet121, shape=IMAGE),
    "squeezenet": Network(make=squeezenet, shape=IMAGE),
    "unet": Network(make=UNet, shape=IMAGE),
    "yolov8n": Network(make=YoloV8n, shape=IMAGE),
    "vit_small": Network(make=Vit, shape=IMAGE),
    "bert_small": Network(make=lambda: Bert(512, 4, 8), shape=(128,), tokens=30522, moving=(0,)),
    "distilbert": Network(make=lambda: Bert(768, 6, 12), shape=(128,), tokens=30522, moving=(0,)),
    "whisper_encoder": Network(make=Whisper, shape=(80, 400)),
    "lstm": Network(make=Lstm, shape=(100, 40)),
    "conv1d": Network(make=conv1d, shape=(1, 8000)),
}


def seeded(name: str, data: Callable[[int], Tensor]) -> nn.Module:
    """Return a network of the zoo in eval mode.

    Args:
        name: Its name.
        data: Returns so many samples of its input, for the statistics of BatchNorm.
    """
    torch.manual_seed(0)
    module = NETWORKS[name].make()
    norms = [item for item in module.modules() if isinstance(item, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
    with torch.no_grad():
        for _ in range(2 if norms else 0):
            module.train()(data(8))
    return module.eval()
