"""ReLU and max pooling that keep bits and int8 places for the backward pass, not floats.

`eager` is where compiled loops begin: torch.compile breaks its graph there, and what records a graph is refused.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from octo_exp.base.errors import UserError
from octo_exp.kernels import ops
from octo_exp.workload import Account, Epilogue, leaving

P = ParamSpec("P")
R = TypeVar("R")


def recorded() -> UserError:
    """Return the refusal of what records a graph."""
    return UserError(
        "a quantised net cannot be recorded by torch.jit.trace or torch.export; write it by "
        "octo export, or use torch.compile, which breaks its graph at quantised layers"
    )


def eager(forward: Callable[P, R]) -> Callable[P, R]:
    """Keep a forward pass out of graphs: it calls loops that no tracer sees, whose numbers would become constants."""

    @functools.wraps(forward)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[attr-defined, no-untyped-call]
            raise recorded()
        return forward(*args, **kwargs)

    kept: Callable[P, R] = torch.compiler.disable(run)
    return kept


class _Activate(torch.autograd.Function):
    """y -> steps(y); saves the mask alone."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, steps: Epilogue, impl: str) -> Tensor:
        """Return ReLU and pooling of y."""
        out, mask = ops.backend(impl, y.device.type).activate(y, steps)
        ctx.steps, ctx.impl, ctx.size = steps, impl, tuple(y.shape[2:])
        ctx.save_for_backward(mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient where it passed."""
        (mask,) = ctx.saved_tensors
        backend = ops.backend(ctx.impl, g.device.type)
        g = backend.mask_gradient(g, mask, ctx.steps)
        if ctx.steps.pool > 1:
            g = backend.spread(g, mask, ctx.steps, ctx.size)
        return g, None, None


@eager
def activate(y: Tensor, steps: Epilogue, impl: str) -> Tensor:
    """y [N, C, H, W] or [..., C] -> ReLU, then max pooling, as `steps` say; float32, differentiable."""
    out: Tensor = _Activate.apply(y.float(), steps, impl)  # type: ignore[no-untyped-call]
    return out


def activate_plainly(y: Tensor, steps: Epilogue) -> Tensor:
    """y of any shape that torch takes, unbatched and empty as well -> steps(y), by torch's own operations."""
    y = F.relu(y) if steps.relu else y
    return F.max_pool2d(y, steps.pool) if steps.pool > 1 else y


class Activation(nn.Module):
    """Stands where nn.ReLU stood, and for the nn.MaxPool2d behind it.

    `absorbed`: a quantised layer before it does the steps in its own epilogue, and this module passes on what it gets.
    """

    def __init__(self, steps: Epilogue, *, impl: str) -> None:
        super().__init__()
        self.steps, self.impl, self.absorbed = steps, impl, False

    def forward(self, x: Tensor) -> Tensor:
        """Return steps(x), float32."""
        if self.absorbed:
            return x
        if x.numel() == 0 or (self.steps.pool > 1 and x.dim() != 4):
            return activate_plainly(x.float(), self.steps)
        return activate(x, self.steps, self.impl)

    def account(self, account: Account) -> None:
        """State what a call costs: nothing where a layer before it does the work."""
        if self.absorbed:
            account.pass_on()
            return
        account.epilogue(account.x_shape, self.steps)
        account.make(leaving(account.x_shape, self.steps))

    def extra_repr(self) -> str:
        """Show the steps."""
        return f"relu={self.steps.relu}, pool={self.steps.pool}" + (", absorbed" if self.absorbed else "")
