"""SGD and Adam on int8 networks: gradients scaled (QAS) before the step, weights and biases made integers after it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from octo_exp.graph.train.modules import McuConv2d
from octo_exp.graph.train.update.qas import scale_gradients
from octo_exp.workload import OptimizerCost

# released: float masters, never clamped; the forward pass rounds weights. strict_int8: integers after every step.
MODES = ("released", "strict_int8")
WEIGHT_LIMIT = 127
INT32_MIN = -(2**31)
# What 2^31 - 1, where an import saturates, is as a float32; a file holds it as 2^31 - 1 again.
INT32_MAX = 2**31


class UpdateStep(Optimizer):
    """A step that scales the gradients of `convs` first (`qas`) and rounds them to integers last (`strict_int8`).

    Both belong to the step and not to a hook before it: Lightning computes the gradients inside `step`, by its closure.
    With accumulated gradients they happen once, on the sum. Parameters outside `convs` (a float head) are stepped
    plainly.

    plain: the optimizer without all this, which the cost model runs on a small parameter.
    """

    plain: ClassVar[type[Optimizer]]

    def __init__(
        self, params: Iterable[Any], *, convs: Sequence[McuConv2d], strict_int8: bool, qas: bool = False, **own: float
    ) -> None:
        """`own`: what the plain optimizer takes beside the parameters."""
        super().__init__(params, **own)  # type: ignore[arg-type]
        self.qas, self.strict_int8, self._convs = qas, strict_int8, convs

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure, if any, then the step; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.qas:
            for conv in self._convs:
                scale_gradients(conv)
        super().step()
        if self.strict_int8:
            for conv in self._convs:
                make_integer(conv)
        return loss

    def account(self, cost_of: Callable[[Optimizer], OptimizerCost]) -> OptimizerCost:
        """Return what a step costs: that of the plain optimizer, and for convolutions scaling and rounding."""
        # Its own class has defaults.
        cost = cost_of(self.plain([dict(group) for group in self.param_groups]))  # type: ignore[call-arg]
        # QAS multiplies; integers are rounded and clamped.
        return replace(cost, coded_operations=1 * self.qas + 2 * self.strict_int8)


class UpdateSGD(UpdateStep, SGD):
    """SGD with the step of an update."""

    plain = SGD


class UpdateAdam(UpdateStep, Adam):
    """Adam with the step of an update; without QAS, for Adam's steps do not follow the scale of a gradient."""

    plain = Adam


@torch.no_grad()
def make_integer(conv: McuConv2d) -> None:
    """Round what is trained of a convolution, half to even: weights into [-127, 127], biases into int32."""
    _round_into(conv.weight, -WEIGHT_LIMIT, WEIGHT_LIMIT)
    _round_into(conv.bias, INT32_MIN, INT32_MAX)


def _round_into(parameter: Tensor, low: int, high: int) -> None:
    if parameter.requires_grad:
        parameter.round_().clamp_(low, high)
