"""Counts the training steps of a net in a plain loop: each draws noise of its own, also after a resume or in a copy."""

from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.nn.activation import eager
from octo_exp.quant.forms import in_backward
from octo_exp.quant.rounding import Clock, Passes

# Where the count stands in the net's state dict.
KEY = "octo_steps"


class StepCounter:
    """Advances the clock that a net's layers share by one with every training pass that records gradients.

    A pass is a call of the net. Where its layers are called past it (`net.encode(x)`), a layer's second call begins
    another. What a backward pass computes again (checkpointing) is the same step.

    (seed, step) travels in the net's state dict, so that a run that goes on draws what an unbroken one would. A state
    dict without it loads too, and the count stays. A copy of the net counts for itself.
    """

    def __init__(self, net: nn.Module, clock: Clock) -> None:
        self.clock, self.passes = clock, Passes()
        # By it the layers count the calls past the net.
        clock.passes = self.passes
        # Before what the net's own hooks compute with its layers.
        net.register_forward_pre_hook(self.advance, prepend=True)
        net.register_forward_hook(self.leave, always_call=True)
        net.register_state_dict_post_hook(self)
        net.register_load_state_dict_pre_hook(self.load)

    @eager
    def advance(self, net: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Count a pass of the whole net."""
        passes = self.passes
        passes.inside = True
        if not net.training:
            return
        if in_backward():
            # Reentrant checkpointing records gradients only here.
            passes.due = not passes.counted
            return
        passes.counted = torch.is_grad_enabled() or passes.due
        if passes.counted:
            self.clock.step, passes.called, passes.due = self.clock.step + 1, set(), False

    @eager
    def leave(self, net: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """The net's call is over, by an error too."""
        self.passes.inside = False

    def __call__(self, net: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        """Add int64 [seed, step] to the net's state (torch wants an object to mark, and a method is none)."""
        state[prefix + KEY] = torch.tensor([self.clock.seed, self.clock.step + self.passes.due])

    def load(self, net: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Go on from there; UserError where it is no (seed, step). An average of states has it as floats."""
        found: Tensor | None = state.pop(prefix + KEY, None)
        if found is None:
            return
        if found.shape != (2,):
            raise UserError(f"{prefix}{KEY} is {found.tolist()}, not [seed, step]: leave it out of the state dict")
        self.clock.seed, self.clock.step = (int(number) for number in found.tolist())
        self.passes.called, self.passes.due = None, False
