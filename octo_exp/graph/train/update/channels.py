"""Which input channels of a convolution train their weights."""

import random

import torch
from torch import Tensor

CRITERIA = ("magnitude+", "magnitude-", "random")


def kept_channels(weight: Tensor, kept: int, *, depthwise: bool, criteria: str, key: str) -> Tensor:
    """weight [O, I, kh, kw] of int8 values -> indices of the `kept` chosen input channels, ascending, [kept] int64.

    magnitude+ takes the largest L2 norms over the other axes, magnitude- the smallest, of equal ones the first; random
    is a draw that depends on `key` only. Depthwise: weight [C, 1, kh, kw], channels are chosen.
    """
    channels = weight.shape[0 if depthwise else 1]
    if criteria == "random":
        chosen = torch.tensor(random.Random(key).sample(range(channels), kept), dtype=torch.int64)
        return chosen.sort().values.to(weight.device)
    norms = channel_norms(weight, depthwise=depthwise)
    order = norms.argsort(descending=criteria == "magnitude+", stable=True)
    return order[:kept].sort().values


def channel_norms(weight: Tensor, *, depthwise: bool) -> Tensor:
    """weight [O, I, kh, kw] of int8 values -> squared L2 norm per input channel [I] int64, exact (depthwise [O])."""
    values = weight.detach().round().to(torch.int64)
    return values.square().sum(dim=(1, 2, 3) if depthwise else (0, 2, 3))
