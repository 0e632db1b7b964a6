"""What one forward pass did: calls of counted layers, other operations, tensors and what is kept of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from octo_exp.workload import VectorWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One execution of a counted layer: its shapes, and the gradients that it owes."""

    layer: str
    module: nn.Conv2d | nn.Linear
    event: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    needs_grad_input: bool
    needs_grad_weight: bool
    # role -> widths of its operands; a role that is absent has float operands.
    bits: Mapping[str, tuple[int, int]]
    # What leaves the layer: fewer elements than the product has where pooling is a part of it, narrower under autocast.
    out_elements: int
    out_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One operation of the forward pass outside of counted layers: what it is, and the tensors it read and made."""

    layer: str
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(slots=True, kw_only=True)
class Storage:
    """A piece of memory that the forward pass makes: the events that make it, use it last and first save it."""

    layer: str
    bytes: int
    first: int
    last: int
    tensors: list[Tensor] = field(default_factory=list)
    saved: int | None = None
    saved_by: str = ""

    @property
    def requires_grad(self) -> bool:
        """Whether the backward pass computes a gradient of it."""
        return any(tensor.requires_grad for tensor in self.tensors)

    @property
    def is_mask(self) -> bool:
        """Whether it holds bits or places, no numbers."""
        return all(not tensor.is_floating_point() for tensor in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Bytes that a stand-in says its layer makes: at its own event, kept for the backward pass or used on the way."""

    layer: str
    kind: str
    bytes: int
    event: int
    backward: bool = False
    kept: bool = False


@dataclass(slots=True, kw_only=True)
class Record:
    """What one forward pass did."""

    net: nn.Module
    calls: list[Call] = field(default_factory=list)
    events: list[Event | None] = field(default_factory=list)
    storages: dict[int, Storage] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    work: list[VectorWork] = field(default_factory=list)
    first_event: dict[str, int] = field(default_factory=dict)
