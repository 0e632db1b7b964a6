"""Keyed randomness: every draw is a function of (seed, step, layer, operand), so a resumed run repeats it."""

import hashlib
import operator
from dataclasses import dataclass

from octo_exp.base.errors import UserError


@dataclass(slots=True)
class Passes:
    """What a plain loop's passes have called: whether the net is being called, and the layers that this step has.

    called: None where the next layer begins a step. counted: whether the last pass was, due: whether the next must be,
    as its gradients were recorded in a backward pass.
    """

    inside: bool = False
    called: set[str] | None = None
    counted: bool = False
    due: bool = False


@dataclass(slots=True)
class Clock:
    """Where a run stands; shared by all layers of a net and advanced by whoever drives the steps.

    passes: of a loop that nobody drives, where the layers' own calls count.
    """

    seed: int = 0
    step: int = 0
    passes: Passes | None = None

    def __post_init__(self) -> None:
        """Take numpy's integers as Python's: a key is made of how they are written. UserError for what is none."""
        try:
            self.seed = operator.index(self.seed)
        except TypeError as error:
            raise UserError(f"seed={self.seed!r} is no whole number; give one") from error


def keyed_seed(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of the key and on their order."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
