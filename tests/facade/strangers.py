"""Networks and a LightningModule of people who never saw this package."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

import octo_exp

SIDE, CLASSES = 16, 4


class Block(nn.Module):
    """Pre-norm attention and MLP, with scaled_dot_product_attention between linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """Patches by a convolution, a class token, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 16, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.blocks = nn.Sequential(Block(16, 2), Block(16, 2))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), patches], 1))[:, 0])


class TinyUNet(nn.Module):
    """Down, up by a transposed convolution, a skip connection; one logit map a class, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        return self.merge(torch.cat([a, self.up(self.down2(a))], 1)).mean((2, 3))


class TinyDepthwise(nn.Module):
    """Inverted residual: 1x1 up, depthwise, 1x1 down."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
        self.block = nn.Sequential(
            *(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            nn.Conv2d(16, 8, 1),
        )
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.block(x)).mean((2, 3)))


NETS = {"vit": TinyViT, "unet": TinyUNet, "depthwise": TinyDepthwise}


def pictures(count: int = 64) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 16, 16] with a bright quadrant, and which quadrant it is."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    images = 0.3 * torch.randn(count, 1, SIDE, SIDE, generator=generator)
    half = SIDE // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = half * (label // 2), half * (label % 2)
        image[:, row : row + half, column : column + half] += 1.0
    return images, labels


class StrangersModule(LightningModule):
    """Their loop: their own loss and optimizer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def noisy(net: nn.Module, seed: int = 0) -> nn.Module:
    return octo_exp.quantize(net, "int8", seed=seed, g={"rounding": "stochastic"}, skip=[])


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4))


def gradient(net: nn.Module, call: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    images, labels = pictures(8)
    net.zero_grad()
    F.cross_entropy((call or net)(images), labels).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])
