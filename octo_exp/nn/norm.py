"""Batch normalisation that saves its input as int8 or bf16 for the backward pass.

The forward pass is torch's own and exact. The backward pass is torch's as well, on the input as it was saved: int8 with
one scale a channel (half a step of s_c = max|x - mean| / 127 off at most), or bf16 (2^-8 of the value).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from octo_exp.nn.activation import eager
from octo_exp.nn.become import become
from octo_exp.nn.layer_accounts import saved_norm
from octo_exp.workload import Account


def _compress(x: Tensor, mean: Tensor, saved: str) -> tuple[Tensor, Tensor | None]:
    """x [N, C, ...], mean [C] -> (int8 codes of x - mean, scale [C]) or (bf16, None)."""
    if saved == "bf16":
        return x.bfloat16(), None
    shape = (1, -1, *[1] * (x.dim() - 2))
    others = [d for d in range(x.dim()) if d != 1]
    low, high = x.amin(others), x.amax(others)
    scale = (torch.maximum(high - mean, mean - low) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (x - mean.reshape(shape)).div_(scale.reshape(shape)).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scale


class _Norm(torch.autograd.Function):
    """x, weight, bias, module -> normalised x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: "_SavedNorm", train: bool
    ) -> Tensor:
        """Normalise by the batch (train) or by the running statistics, which a training batch moves."""
        running = (norm.running_mean, norm.running_var)
        y, mean, inverse_std = torch.native_batch_norm(x, weight, bias, *running, train, norm.factor, norm.eps)
        center = mean if train or norm.running_mean is None else norm.running_mean
        codes, scale = _compress(x, center, norm.saved)
        ctx.norm, ctx.train = norm, train
        ctx.save_for_backward(codes, scale, center, inverse_std, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias."""
        codes, scale, mean, inverse_std, weight = ctx.saved_tensors
        shape = (1, -1, *[1] * (g.dim() - 2))
        x = codes.float()
        if scale is not None:
            x = x.mul_(scale.reshape(shape)).add_(mean.reshape(shape))
        running = (ctx.norm.running_mean, ctx.norm.running_var)
        wanted = [ctx.needs_input_grad[0], weight is not None, weight is not None]
        memory = (mean, inverse_std) if ctx.train else (None, None)
        dx, dw, db = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, *running, *memory, ctx.train, ctx.norm.eps, wanted
        )
        return dx if ctx.needs_input_grad[0] else None, dw, db, None, None


class _SavedNorm(_BatchNorm):
    """Mixed into torch's norms: same parameters, buffers and forward; the backward pass reads a smaller input."""

    saved: str
    factor: float

    @classmethod
    def convert(cls, norm: nn.Module, *, saved: str) -> "_SavedNorm":
        """Make torch's module one of this class where it stands."""
        layer = become(norm, cls)
        layer.saved = saved
        return layer

    @eager
    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        train = self.training or self.running_mean is None
        # torch refuses a training batch of one value a channel.
        if not torch.is_grad_enabled() or x.numel() == 0 or (train and x.numel() == x.shape[1]):
            plain: Tensor = super().forward(x)
            return plain
        self.factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                self.factor = 1.0 / float(self.num_batches_tracked)
        y: Tensor = _Norm.apply(x.float(), self.weight, self.bias, self, train)  # type: ignore[no-untyped-call]
        return y

    def account(self, account: Account) -> None:
        """State what a call costs."""
        saved_norm(account, self)


class SavedBatchNorm1d(_SavedNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d that saves its input as int8 or bf16."""


class SavedBatchNorm2d(_SavedNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d that saves its input as int8 or bf16."""


NORMS: Mapping[type[nn.Module], type[_SavedNorm]] = {nn.BatchNorm1d: SavedBatchNorm1d, nn.BatchNorm2d: SavedBatchNorm2d}
