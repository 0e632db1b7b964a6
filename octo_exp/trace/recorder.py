"""Runs a meta network once and notes every operation, what it reads and makes, and what autograd saves."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from octo_exp.base.errors import UserError
from octo_exp.trace.meta_copy import COUNTED
from octo_exp.trace.recorded import Call, Event, Record, Storage
from octo_exp.workload import ROLES

# Layers that multiply and are not counted, whether or not the flop counter sees into them.
_UNSUPPORTED = (
    nn.Conv1d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Bilinear,
)
# Products that torch's flop counter does not know.
_PRODUCTS = {"mv", "addmv", "dot", "vdot", "addr", "addbmm", "_trilinear", "_cdist_forward"}


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the calls of counted layers and refuses a multiplication of matrices outside of them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = Record(net=net)
        self.stand_ins: set[nn.Module] = set()
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
        net = self.record.net
        floats = (parameter.dtype for parameter in net.parameters() if parameter.is_floating_point())
        example = torch.empty(tuple(shape), dtype=next(floats, torch.float32), device="meta")
        self._used(example, 0)
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed), self:
                net(example)
        except (RuntimeError, ValueError, TypeError) as error:
            self._refuse_uncounted()
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"cannot trace {self._where()} on an input of shape {list(shape)}: {reason}") from error
        self._refuse_uncounted()
        return self.record

    @property
    def event(self) -> int:
        """Index of the event that comes next."""
        return len(self.record.events)

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

    def add_event(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], event: Event | None = None) -> int:
        """Note an operation that reads and makes tensors; return its index."""
        index = self.event
        self.record.events.append(event)
        self.record.first_event.setdefault(self.layer, index)
        for tensor in (*inputs, *outputs):
            self._used(tensor, index)
        return index

    def add_call(
        self,
        module: nn.Conv2d | nn.Linear,
        given: Tensor,
        output_shape: Sequence[int],
        event: int,
        *,
        bf16: bool = False,
        out_elements: int | None = None,
        out_bits: int = 32,
    ) -> None:
        """Note that a counted layer ran; `bf16`: a float layer that multiplies in it."""
        name = self._names[module]
        self._seen[name] += 1
        self.record.calls.append(
            Call(
                layer=name if self._seen[name] == 1 else f"{name}#{self._seen[name]}",
                module=module,
                event=event,
                input_shape=tuple(given.shape),
                output_shape=tuple(output_shape),
                needs_grad_input=given.requires_grad,
                needs_grad_weight=module.weight.requires_grad,
                bits=dict.fromkeys(ROLES, (16, 16)) if bf16 else getattr(module, "operand_bits", None) or {},
                out_elements=math.prod(output_shape) if out_elements is None else out_elements,
                out_bits=out_bits,
            )
        )

    def save(self, tensor: Tensor, event: int) -> None:
        """Note that a tensor is kept for the backward pass of an event."""
        storage = self.record.storages.get(_key(tensor))
        if storage is not None and storage.saved is None:
            storage.saved, storage.saved_by = event, self.layer

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
            event = Event(layer=self.layer, name=name, inputs=tuple(inputs), outputs=tuple(outputs))
            self.add_event(inputs, outputs, event)
        return out

    def _used(self, tensor: Tensor, event: int) -> None:
        key = _key(tensor)
        if key in self._owned:
            return
        storage = self.record.storages.get(key)
        if storage is None:
            size = tensor.untyped_storage().nbytes()
            storage = self.record.storages[key] = Storage(layer=self.layer, bytes=size, first=event, last=event)
        storage.last = max(storage.last, event)
        # Kept, so that no other tensor gets the same storage.
        storage.tensors.append(tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if not self._silent:
            storage = self.record.storages.get(_key(tensor))
            # Results are saved after their operation was noted, inputs before.
            made_now = storage is not None and storage.first == self.event - 1 and storage.layer == self.layer
            self.save(tensor, self.event - 1 if made_now else self.event)
        return tensor

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._running.append(module)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(module, COUNTED) and module not in self.stand_ins:
            given = args[0] if args else kwargs["input"]
            self.add_call(module, given, output.shape, max(self.event - 1, 0))
        self._running.pop()

    def _where(self) -> str:
        module = self._running[-1] if self._running else next(iter(self._names))
        name = self._names[module]
        return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__

    def _refuse_uncounted(self) -> None:
        """Name the largest of the layers whose MACs nothing prices, with their share."""
        for module in self._names:
            if isinstance(module, _UNSUPPORTED):
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
