"""The values of a network's tensors over calibration images: their extremes, and a bounded sample of them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from octo_exp.base.errors import UserError
from octo_exp.base.progress import with_progress
from octo_exp.graph.calibrate.traced_ops import place

# Values kept of a tensor, 512 KiB of float32 with their keys.
SAMPLES = 2**16


class Observed:
    """Extremes `low`, `high` and a uniform sample of at most SAMPLES of all values seen within bounds.

    Each value draws a key; those of the smallest keys are kept, so every value has the same chance in any batch.
    """

    def __init__(self, bounds: tuple[float, float], *, sample: bool) -> None:
        self.bounds, self.wants_sample = bounds, sample
        self.low, self.high = float("inf"), float("-inf")
        self.values, self.keys = torch.empty(0), torch.empty(0)
        self.generator = torch.Generator().manual_seed(0)

    def update(self, t: Tensor) -> bool:
        """Take in the values of a tensor of any shape; return whether all are finite, else none is taken."""
        values = t.detach().float().cpu().flatten()
        # Before the bounds, which would make a number of an infinity.
        ends = torch.stack(torch.aminmax(values))
        if not bool(ends.isfinite().all()):
            return False
        low, high = ends.clamp(*self.bounds).tolist()
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.wants_sample:
            self._draw(values.clamp(*self.bounds))
        return True

    def _draw(self, values: Tensor) -> None:
        keys = torch.rand(len(values), generator=self.generator)
        if len(self.keys) == SAMPLES:
            chosen = keys < self.keys.max()
            values, keys = values[chosen], keys[chosen]
        values, keys = torch.cat([self.values, values]), torch.cat([self.keys, keys])
        if len(keys) > SAMPLES:
            keys, chosen = keys.topk(SAMPLES, largest=False, sorted=False)
            values = values[chosen]
        self.values, self.keys = values, keys


class _Watch(Interpreter):
    """Runs a traced network and shows the wanted tensors before anything in place can change them."""

    def __init__(self, net: GraphModule, observed: dict[str, Observed]) -> None:
        super().__init__(net)
        self.observed = observed
        # Where, in order.
        self.not_finite: list[str] = []

    def run_node(self, n: Node) -> Any:
        """Run a node and look at what it makes."""
        value = super().run_node(n)
        if n.name in self.observed and not self.observed[n.name].update(value):
            self.not_finite.append("images hold" if n.op == "placeholder" else f"layer {place(n)} makes")
        return value

    def check(self) -> None:
        """Raise UserError where a tensor was not finite: not inside `run`, which adds lines to what is raised there."""
        if self.not_finite:
            where = self.not_finite[0]
            raise UserError(f"calibration: {where} values that are not finite; check images and weights")


def observe(
    net: GraphModule, batches: Iterable[Tensor], tensors: dict[str, tuple[float, float]], *, sample: bool
) -> dict[str, Observed]:
    """Return what the named tensors held within their bounds, over all batches [B, C, S, S].

    UserError where a tensor has a value that is not finite (its layer is named), or a batch does not fit.
    """
    observed = {name: Observed(bounds, sample=sample) for name, bounds in tensors.items()}
    watch, device = _Watch(net, observed), next(net.parameters(), torch.empty(0)).device
    with torch.no_grad():
        for batch in with_progress(batches, "calibration"):
            try:
                watch.run(batch.to(device))
            except RuntimeError as error:
                raise UserError(f"a calibration batch {list(batch.shape)} does not fit the network") from error
            watch.check()
    return observed
