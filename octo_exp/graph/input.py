"""The first operation of an int8 graph: images of floats become its codes."""

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.graph.parts import Q_MAX, Q_MIN
from octo_exp.graph.spec import InputSpec


class McuInput(nn.Module):
    """x [N, C, H, W] floats -> codes = clamp(round(x / scale) + zero, -128, 127), in float32 throughout.

    No gradient reaches the image. With `is_codes` the floats must be codes but for their rounding: a published model's
    pixels are (p / 255 - 0.5) * 255.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.is_codes = spec.is_codes
        self.register_buffer("scale", torch.tensor(spec.scale, dtype=torch.float64))
        self.register_buffer("zero", torch.tensor(spec.zero, dtype=torch.int32))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> codes in float32; UserError for what is no number, or beyond codes where it must be one."""
        low, high = x.aminmax()
        # Half a code more is rounded to the nearest even one.
        fits = [low >= Q_MIN - 0.5, high < Q_MAX + 0.5] if self.is_codes else [low <= high]
        if not torch.stack(fits).all():
            wanted = f"codes of {Q_MIN} to {Q_MAX}" if self.is_codes else "numbers"
            remedy = "mean 0.5 and standard deviation 1/255" if self.is_codes else "the data's mean and deviation"
            raise UserError(f"input must be {wanted}, got {low:.4g} to {high:.4g}; normalise with {remedy}")
        return (x / self.scale).round_().add_(self.zero).clamp_(Q_MIN, Q_MAX)
