"""Shapes of the released models, a small network with the parts that update rules touch, and where the goldens lie."""

import csv
import functools
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octo_exp.graph.train.update.convolutions import LayerShape

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests/golden/tiny_training"
# The release's name of a model -> ours.
MODELS = {"mbv2-w0.35": "mbv2_w035", "mcunet-5fps": "mcunet_5fps", "proxyless-w0.3": "proxyless_w03"}


@functools.cache
def released_shapes(model: str) -> list[LayerShape]:
    with (GOLDEN / "layer_shapes.csv").open() as file:
        rows = [{k: v if k == "model" else int(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [
        LayerShape(
            **{name: row[name] for name in ("in_channels", "out_channels", "groups")},
            kernel=(row["kernel"],) * 2,
            in_size=(row["in_size"],) * 2,
            out_size=(row["out_size"],) * 2,
        )
        for row in rows
        if row["model"] == model
    ]


def data_file(variable: str, default: str, name: str) -> Path:
    """A file of the models or the large goldens; skips where there is none."""
    path = Path(os.environ.get(variable) or ROOT.parent / default) / name
    if not path.is_file():
        pytest.skip(f"{variable} has no {name}: the models and goldens of tiny-training are not on this machine")
    return path


def golden_file(name: str) -> Path:
    return data_file("OCTO_MCU_GOLDENS", "shared/goldens/tiny_training", name)


def model_file(model: str) -> Path:
    return data_file("OCTO_MCU_DIR", "shared/models/mcu", f"{model}.pkl")


@dataclass(frozen=True, kw_only=True)
class Update:
    train_weight: bool = True
    train_bias: bool = True
    kept: Tensor | None = None


class Conv(nn.Module):
    """An unquantised stand-in: padded convolution, ReLU; only the kept channels' weights have a gradient."""

    def __init__(self, c_in: int, c_out: int, *, groups: int = 1, kernel: int = 1, size: int = 4) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = c_in, c_out, groups
        self.in_size = self.out_size = (size, size)
        shape = (c_out, c_in // groups, kernel, kernel)
        self.weight = nn.Parameter(torch.randint(-127, 128, shape).float())
        self.bias = nn.Parameter(torch.randint(-1000, 1000, (c_out,)).float())
        self.register_buffer("w_scales", 1e-3 + 1e-2 * torch.rand(c_out))
        self.register_buffer("x_scale", torch.tensor(0.02))
        self.update = Update()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.update.kept is not None:
            mask = torch.zeros(self.in_channels, dtype=torch.bool)
            mask[self.update.kept] = True
            mask = mask.reshape((-1, 1, 1, 1) if self.groups > 1 else (1, -1, 1, 1))
            weight = torch.where(mask, weight, weight.detach())
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2, groups=self.groups).clamp(-1e5, 1e5) / 100


class Net(nn.Module):
    """first_conv, an inverted bottleneck (1x1, 3x3 depthwise, 1x1), mean over the image, a float or quantised head."""

    def __init__(self, *, classes: int = 3, quantized_head: bool = False) -> None:
        super().__init__()
        self.body = nn.ModuleList(
            [Conv(3, 8, kernel=3), Conv(8, 16), Conv(16, 16, groups=16, kernel=3), Conv(16, 7)],
        )
        self.head = Conv(7, classes, size=1) if quantized_head else nn.Linear(7, classes)
        self.quantized_head = quantized_head

    @property
    def convs(self) -> list[Conv]:
        return [*self.body, *([self.head] if self.quantized_head else [])]

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.body:
            x = conv(x)
        x = x.mean((2, 3), keepdim=True)
        return self.head(x if self.quantized_head else x.flatten(1)).flatten(1)


def sparse(**changes) -> dict:
    """Arguments of a SparseUpdate that trains everything, with changes."""
    everything = {"n_bias": "all", "n_weight": "all", "weight_idx": None, "ratio": None}
    return {**everything, "criteria": "magnitude+", "pw1_only": False, "seed": 0} | changes
