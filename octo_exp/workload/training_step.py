"""What one training step did, in order: accounts, the tensors between its operations, and what it trains."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from octo_exp.workload.account import Account


@dataclass(slots=True, kw_only=True, eq=False)
class Value:
    """A tensor that the forward pass makes: the events that make it, use it last and first keep it.

    gradient_bytes: of its gradient, 0 where none is computed. is_mask: it holds bits or places, no numbers.
    """

    layer: str
    bytes: int
    first: int
    last: int
    gradient_bytes: int = 0
    is_mask: bool = False
    saved: int | None = None
    saved_by: str = ""

    def save(self, event: int, layer: str) -> None:
        """Keep it for the backward pass of an event, unless an earlier one does."""
        if self.saved is None:
            self.saved, self.saved_by = event, layer


@dataclass(slots=True, kw_only=True)
class Record:
    """A forward pass of `events` operations.

    Attributes:
        accounts: (event, account) of each layer that has one, in order.
        values: the tensors, the batch first.
        first_event: layer -> its first operation.
        shares: layer -> the share of its input channels whose weights train, where it is not all of them.
        trained: layer -> elements of its parameters that a step updates.
        coded: layers whose parameters stand for codes, which an optimizer may scale and round.

    """

    accounts: list[tuple[int, Account]] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    events: int = 0
    first_event: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
    coded: set[str] = field(default_factory=set)

    def begin(self, layer: str, inputs: Iterable[Value] = ()) -> int:
        """Add an operation that reads values; return its event."""
        event, self.events = self.events, self.events + 1
        self.first_event.setdefault(layer, event)
        for value in inputs:
            value.last = event
        return event


@runtime_checkable
class AccountsForSteps(Protocol):
    """A network whose operations no hook sees: it states a whole step."""

    def step_account(self, batch_shape: tuple[int, ...]) -> Record:
        """Return the record of a training step on a batch; UserError where it does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerCost:
    """For each trained parameter: operations of a step (elements of its kernels' results), bytes of state.

    coded_operations: of parameters that stand for codes, operations beside those, each a pass over the tensor.
    """

    operations: float
    state_bytes: float
    coded_operations: float = 0


@runtime_checkable
class AccountsForUpdates(Protocol):
    """An optimizer that states its cost; `cost_of` measures a plain one, with nothing bound to a network."""

    def account(self, cost_of: Callable[[Any], OptimizerCost]) -> OptimizerCost:
        """Return what a step costs."""
