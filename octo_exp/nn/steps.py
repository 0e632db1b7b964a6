"""Counts the training steps of a net in a plain loop: each draws noise of its own, also after a resume or in a copy."""

from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.nn.eager import eager
from octo_exp.quant.rounding import Clock

# Where the count stands in the net's state dict.
KEY = "octo_steps"


class StepCounter:
    """Advances the clock that a net's layers share by one with every training pass that records gradients.

    (seed, step) travels in the net's state dict, so that a run that goes on draws what an unbroken one would. A state
    dict without it loads too, and the count stays. A copy of the net counts for itself.
    """

    def __init__(self, net: nn.Module, clock: Clock) -> None:
        self.clock = clock
        # Before what the net's own hooks compute with its layers.
        net.register_forward_pre_hook(self.advance, prepend=True)
        net.register_state_dict_post_hook(self)
        net.register_load_state_dict_pre_hook(self.load)

    @eager
    def advance(self, net: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Count a pass. What a backward pass computes again lies inside the net: it is the same step."""
        if net.training and torch.is_grad_enabled():
            self.clock.step += 1

    def __call__(self, net: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        """Add int64 [seed, step] to the net's state (torch wants an object to mark, and a method is none)."""
        state[prefix + KEY] = torch.tensor([self.clock.seed, self.clock.step])

    def load(self, net: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Go on from there."""
        found: Tensor | None = state.pop(prefix + KEY, None)
        if found is not None:
            self.clock.seed, self.clock.step = found.tolist()
