"""What the figures of docs/concepts.md are computed from: a layer's tensors in training, quantised in several ways."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octo_exp.examples.int8_in_one_file import LeNet5, codes_of, columns, digits, int_mm, scale_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A convolution in a training step as a matrix product: x [M, K] rows of windows, w [O, K], g [M, O]."""

    x: Tensor
    w: Tensor
    g: Tensor


def capture(steps: int, batch: int = 32) -> Captured:
    """Train LeNet-5 in int8 on the digits for that many steps; return its second convolution's tensors in the last."""
    torch.manual_seed(0)
    net, (images, labels) = LeNet5(), digits()
    layer: Any = net.layers[1]
    found: dict[str, Tensor] = {}

    def remember(module: nn.Module, inputs: tuple[Tensor, ...], y: Any) -> None:
        found["x"], found["w"] = inputs[0].detach(), layer.weight.detach().clone()
        y.register_hook(lambda g: found.update(g=g))

    layer.register_forward_hook(remember)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for step in range(steps):
        chosen = slice(step * batch % 1024, step * batch % 1024 + batch)
        optimizer.zero_grad()
        loss: Any = F.cross_entropy(net(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
    return Captured(x=columns(found["x"], layer.k), w=found["w"], g=found["g"].flatten(0, 2))


def product_and_term(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] in asymmetric codes, w [O, K] in symmetric ones -> (p [M, O], t [O]); LAC's output is p - (1 + theta)*t.

    p = s_x*s_w * (q_x @ q_w.T), t = s_x*s_w * z * sum_k q_w.
    """
    low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
    s_x, s_w = (high - low) / 255, scale_of(*w.aminmax())
    zero = (-128 - low / s_x).round()
    q_x = ((x / s_x).round() + zero).clamp(-128, 127).to(torch.int8)
    q_w = codes_of(w, s_w)
    return int_mm(q_x, q_w.t()) * (s_x * s_w), s_x * s_w * zero * q_w.sum(1)


def ratio_range(g: Tensor, coefficient: float) -> tuple[Tensor, Tensor]:
    """PRC's form `ratio` for a g that has both signs: [c*min, c*max]."""
    low, high = g.aminmax()
    return coefficient * low, coefficient * high


def gaussian_range(g: Tensor, z: float) -> tuple[Tensor, Tensor]:
    """PRC's form `gaussian` for a g that has both signs: [mean - z*sigma, mean + z*sigma], within g's own range."""
    mean, sigma = g.mean(), g.std(correction=0)
    return torch.maximum(mean - z * sigma, g.min()), torch.minimum(mean + z * sigma, g.max())


def rounded(g: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """g cut to [low, high] and rounded to symmetric codes of 2 to 8 bits, back in float."""
    scale = torch.maximum(low.abs(), high.abs()) / (2 ** (bits - 1) - 1)
    out: Tensor = (g.clamp(low, high) / scale).round() * scale
    return out


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return |found - exact| / |exact|."""
    return float((found - exact).norm() / exact.norm())
