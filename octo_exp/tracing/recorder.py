"""Runs a meta network once and notes every operation, what it reads and makes, and what autograd saves."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from octo_exp.base.errors import UserError
from octo_exp.tracing.meta_copy import COUNTED
from octo_exp.workload import Account, Record, Value

# Layers that multiply and are not counted, whether or not the flop counter sees into them.
_UNSUPPORTED = (nn.Conv1d, nn.Conv3d, _ConvTransposeNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
# Products that torch's flop counter does not know.
_PRODUCTS = {"mv", "addmv", "dot", "vdot", "addr", "addbmm", "_trilinear", "_cdist_forward"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One operation of the forward pass outside of accounts: what it is, and the tensors it read and made."""

    layer: str
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Recorder(TorchDispatchMode):
    """Notes the accounts of layers and every other operation; refuses a multiplication of matrices outside of them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.net, self.record = net, Record()
        self.events: list[Event] = []
        # Modules that are asked and not run.
        self.asked: set[nn.Module] = set()
        self._values: dict[int, Value] = {}
        # Kept, so that no other tensor gets the same storage.
        self._tensors: dict[int, list[Tensor]] = {}
        self._names = {module: name for name, module in net.named_modules()}
        self._owned = {_key(tensor) for tensor in (*net.parameters(), *net.buffers())}
        self._running: list[nn.Module] = []
        self._seen: Counter[str] = Counter()
        self._macs = 0
        self._uncounted: dict[nn.Module, int] = {}
        self._silent = False
        for module in self._names:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave, with_kwargs=True)

    def run(self, shape: Sequence[int]) -> Record:
        """Run the net on a batch of the given shape; raise `UserError` where it cannot be priced."""
        net = self.net
        floats = (parameter.dtype for parameter in net.parameters() if parameter.is_floating_point())
        example = torch.empty(tuple(shape), dtype=next(floats, torch.float32), device="meta")
        self._used(example, 0)
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed), self:
                net(example)
        except UserError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            self._refuse_uncounted()
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"cannot trace {self._where()} on an input of shape {list(shape)}: {reason}") from error
        self._refuse_uncounted()
        for key, value in self._values.items():
            tensors = self._tensors[key]
            value.gradient_bytes = value.bytes if any(tensor.requires_grad for tensor in tensors) else 0
            value.is_mask = not any(tensor.is_floating_point() for tensor in tensors)
        self.record.values = list(self._values.values())
        return self.record

    @property
    def layer(self) -> str:
        """Name of the innermost running module."""
        return self._names[self._running[-1]] if self._running else ""

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Operations inside are part of a layer that speaks for itself."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    def add_event(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        """Note an operation that reads and makes tensors; return its index."""
        index = self.record.begin(self.layer)
        for tensor in (*inputs, *outputs):
            self._used(tensor, index)
        return index

    def open(self, module: nn.Module, given: Tensor, *, autocast: bool = False) -> Account:
        """Return an empty account of a call of a module."""
        name = self._names[module]
        times = self._seen[name] + 1
        trains = any(parameter.requires_grad for parameter in module.parameters())
        return Account(
            layer=name,
            call=name if times == 1 else f"{name}#{times}",
            x_shape=tuple(given.shape),
            x_bits=8 * given.element_size(),
            grad_input=given.requires_grad,
            differentiable=given.requires_grad or trains,
            autocast=autocast,
        )

    def close(self, account: Account, event: int) -> None:
        """Note a filled account."""
        self.record.accounts.append((event, account))
        if self._running[-1] in self.asked:
            # Others were seen at work.
            self._macs += sum(product.macs for product in account.products)
            self._macs += sum(gemm.macs for gemm in account.gemms if gemm.role == "output")
        self._seen[account.layer] += bool(account.products or account.gemms)

    def save(self, tensor: Tensor, event: int) -> None:
        """Note that a tensor is kept for the backward pass of an event."""
        value = self._values.get(_key(tensor))
        if value is not None:
            value.save(event, self.layer)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        macs = 0
        if func._overloadpacket in flop_registry:
            macs = int(flop_registry[func._overloadpacket](*args, **given, out_val=out)) // 2
            self._macs += macs
            if not isinstance(self._running[-1], COUNTED):
                self._uncounted[self._running[-1]] = self._uncounted.get(self._running[-1], 0) + macs
        elif func._overloadpacket.__name__ in _PRODUCTS:
            self._uncounted.setdefault(self._running[-1], 0)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not self._silent and not func.is_view and outputs:
            inputs = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
            name = "gemm" if macs else str(func._overloadpacket.__name__)
            self.events.append(Event(layer=self.layer, name=name, inputs=tuple(inputs), outputs=tuple(outputs)))
            self.add_event(inputs, outputs)
        return out

    def _used(self, tensor: Tensor, event: int) -> None:
        key = _key(tensor)
        if key in self._owned:
            return
        if key not in self._values:
            size = tensor.untyped_storage().nbytes()
            self._values[key] = Value(layer=self.layer, bytes=size, first=event, last=event)
        self._values[key].last = max(self._values[key].last, event)
        self._tensors.setdefault(key, []).append(tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if not self._silent:
            value, event = self._values.get(_key(tensor)), self.record.events
            # Results are saved after their operation was noted, inputs before.
            made_now = value is not None and value.first == event - 1 and value.layer == self.layer
            self.save(tensor, event - 1 if made_now else event)
        return tensor

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._running.append(module)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(module, COUNTED) and module not in self.asked:
            account = self.open(module, args[0] if args else kwargs["input"])
            account.multiply(module)
            self.close(account, max(self.record.events - 1, 0))
        self._running.pop()

    def _where(self) -> str:
        module = self._running[-1] if self._running else next(iter(self._names))
        name = self._names[module]
        return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__

    def _refuse_uncounted(self) -> None:
        """Name the largest of the layers whose MACs nothing prices, with their share."""
        answered = {inner for module in self.asked for inner in module.modules()}
        for module in self._names:
            if isinstance(module, _UNSUPPORTED) and module not in answered:
                # Its children may have been seen at work in its place.
                seen = [self._uncounted.pop(child, 0) for child in module.modules()]
                self._uncounted[module] = sum(seen)
        if not self._uncounted:
            return
        module = max(self._uncounted, key=lambda item: self._uncounted[item])
        macs, others = self._uncounted[module], len(self._uncounted) - 1
        share = f"{100 * macs / self._macs:.1f} % of the forward MACs" if macs else "an unknown share of the MACs"
        more = f", nor can {others} more" if others else ""
        raise UserError(
            f"layer {self._names[module]!r} ({type(module).__name__}) with {share} cannot be priced{more}: "
            "only the MACs of nn.Conv2d and nn.Linear are counted; replace it, or run without prices (~callbacks.cost)"
        )


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
