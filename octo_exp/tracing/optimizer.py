"""What an optimizer costs for each parameter that it updates, found by running it on a small one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from octo_exp.base.errors import UserError
from octo_exp.workload import AccountsForUpdates, OptimizerCost

# w += -lr * g, one kernel.
SGD = OptimizerCost(operations=1, state_bytes=0)


def optimizer_cost(optimizer: Optimizer) -> OptimizerCost:
    """Its own account, or the cost of its dearest group; `UserError` for one that does not run on its own."""
    if isinstance(optimizer, AccountsForUpdates):
        return optimizer.account(optimizer_cost)
    try:
        costs = [_one_step(optimizer, group) for group in optimizer.param_groups]
    except (TypeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cost: {type(optimizer).__name__} cannot be priced ({error}); choose another optimizer or ~callbacks.cost"
        ) from error
    return max(costs, key=lambda cost: cost.operations)


def _one_step(optimizer: Optimizer, group: Mapping[str, object]) -> OptimizerCost:
    # Large beside the step counter that some optimizers keep; two dimensions, for those that want a matrix.
    dummy = nn.Parameter(torch.zeros(32, 32))
    options = {name: value for name, value in group.items() if name != "params"}
    # One kernel a parameter, so that its elements can be counted.
    options |= {name: False for name in ("foreach", "fused", "capturable") if name in options}
    # Its own class has defaults.
    twin = type(optimizer)([{"params": [dummy], **options}])  # type: ignore[call-arg]
    dummy.grad = torch.ones_like(dummy)
    # The first step makes the state, the second is an ordinary one.
    twin.step()
    with _Elements() as counted:
        twin.step()
    states = [t for t in tree_leaves(twin.state[dummy]) if isinstance(t, Tensor) and t.numel() >= dummy.shape[0]]
    size = sum(t.numel() * t.element_size() for t in states)
    return OptimizerCost(operations=counted.elements / dummy.numel(), state_bytes=size / dummy.numel())


class _Elements(TorchDispatchMode):
    """Counts the elements of every kernel's result, scalars left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.dim() > 0]
        if not func.is_view:
            self.elements += sum(result.numel() for result in results)
        return out
