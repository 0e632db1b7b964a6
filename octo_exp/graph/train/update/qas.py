"""Quantisation-aware scaling (QAS): gradients of int8 weights brought to the ratio that float training has.

With w = s_w*q the gradient of the codes is s_w times that of w while the codes are 1/s_w times larger, so a step moves
them by s_w^2 too little. Per output channel c, before momentum and weight decay:

    g_w~ = g_w / s_w[c]^2        g_b~ = g_b / (s_w[c]*s_x)^2

A dead channel (s_w < 1e-5, down to 4e-9 in released models) would turn any gradient into 1e10 times itself or more;
its weights are constants of the import and its gradients become 0. Source: On-Device Training Under 256KB Memory
(NeurIPS 2022), equation 4; the guard is ours.
"""

import torch
from torch import Tensor

from octo_exp.graph.spec import DEAD_SCALE
from octo_exp.graph.train.modules import McuConv2d


def weight_factors(w_scales: Tensor) -> Tensor:
    """w_scales [O] -> 1/w_scales^2 [O] float32, 0 in dead channels."""
    return _factors(w_scales.double(), dead=w_scales < DEAD_SCALE)


def bias_factors(w_scales: Tensor, x_scale: Tensor) -> Tensor:
    """w_scales [O], x_scale [] -> 1/(w_scales*x_scale)^2 [O] float32, 0 in dead channels."""
    return _factors(w_scales.double() * x_scale.double(), dead=w_scales < DEAD_SCALE)


@torch.no_grad()
def scale_gradients(conv: McuConv2d) -> None:
    """Multiply the gradients that a convolution has by their factors, in place."""
    if conv.weight.grad is not None:
        conv.weight.grad.mul_(weight_factors(conv.w_scales).reshape(-1, 1, 1, 1))
    if conv.bias.grad is not None:
        conv.bias.grad.mul_(bias_factors(conv.w_scales, conv.x_scale))


def _factors(scales: Tensor, *, dead: Tensor) -> Tensor:
    # In float64: the square of the smallest products of two scales leaves float32's normal range.
    return scales.square().reciprocal().masked_fill(dead, 0.0).float()
