"""The quantised tensor: integers and the two numbers that give them a meaning."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octo_exp.kernels.ops import dequantize


@dataclass(frozen=True, slots=True, kw_only=True)
class QTensor:
    """x ~ (values - zero_point) * scale.

    Invariants: `values` is int8; `scale` is float32 and positive, a scalar, or one a channel and broadcastable against
    `values`; `zero_point` is an int32 scalar within the code range, or None where the quantiser is symmetric (0).
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None = None

    @property
    def per_channel(self) -> bool:
        """Whether `scale` holds one value a channel."""
        return self.scale.dim() > 0

    def dequantize(self) -> Tensor:
        """Return (values - zero_point) * scale, float32."""
        zero = torch.zeros((), device=self.values.device) if self.zero_point is None else self.zero_point
        return dequantize(self.values, self.scale, zero)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what a backward pass saves: (values, scale, zero_point)."""
        return self.values, self.scale, self.zero_point
