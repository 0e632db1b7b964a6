"""The values of a network's tensors over calibration images: their extremes, and a bounded sample of them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from octo_exp.errors import UserError
from octo_exp.progress import with_progress

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

    def update(self, t: Tensor) -> None:
        """Take in the values of a tensor of any shape."""
        values = t.detach().float().cpu().flatten().clamp(*self.bounds)
        low, high = (float(v) for v in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.wants_sample:
            self._draw(values)

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

    def run_node(self, n: Node) -> Any:
        """Run a node and look at what it makes."""
        value = super().run_node(n)
        if n.name in self.observed:
            self.observed[n.name].update(value)
        return value


def observe(
    net: GraphModule, batches: Iterable[Tensor], tensors: dict[str, tuple[float, float]], *, sample: bool
) -> dict[str, Observed]:
    """Return what the named tensors held within their bounds, over all batches [B, C, S, S].

    UserError where a tensor has a value that is not finite, or a batch does not fit.
    """
    observed = {name: Observed(bounds, sample=sample) for name, bounds in tensors.items()}
    watch, device = _Watch(net, observed), next(net.parameters(), torch.empty(0)).device
    with torch.no_grad():
        for batch in with_progress(batches, "calibration"):
            try:
                watch.run(batch.to(device))
            except RuntimeError as error:
                raise UserError(f"a calibration batch {list(batch.shape)} does not fit the network") from error
    for name, seen in observed.items():
        if not -float("inf") < seen.low <= seen.high < float("inf"):
            raise UserError(f"calibration: tensor {name} holds values that are not finite; check images and weights")
    return observed
