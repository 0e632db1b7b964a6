"""What a stand-in says to the recorder: what its layer makes, keeps, uses and does, in one call."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.quant.quantizer import Quantizer
from octo_exp.trace.recorded import Kept
from octo_exp.trace.recorder import Recorder
from octo_exp.trace.vector import CLIP_OPS, DRAW_OPS, FLOAT_BYTES, QUANTIZE_OPS
from octo_exp.workload import Epilogue, VectorWork


class _Stand(torch.autograd.Function):
    """Inputs that may need a gradient, compute -> compute(), which then needs one too."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Return the result."""
        out: Tensor = args[-1]()
        return out


class Scene:
    """One call of one stand-in: its input, and what it says to the recorder."""

    def __init__(self, recorder: Recorder, module: Any, x: Tensor) -> None:
        self.recorder, self.module, self.x = recorder, module, x
        self.layer, self.event = recorder.layer, recorder.event

    @property
    def trained(self) -> bool:
        """Whether autograd records the call."""
        return self.x.requires_grad or any(p.requires_grad for p in self.module.parameters())

    def make(self, compute: Callable[[], Tensor]) -> Tensor:
        """Return a result of `compute`, one event whose inner tensors are not seen."""
        inputs = (self.x, *self.module.parameters())
        with self.recorder.silence():
            out: Tensor = _Stand.apply(*inputs, lambda: compute().clone())
        self.recorder.add_event([self.x], [out])
        return out

    def shape_of(self, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return compute(x) as a tensor that nothing remembers, for its shape."""
        with self.recorder.silence(), torch.no_grad():
            return compute(self.x.float())

    def keep(self, kind: str, size: int) -> None:
        """Say that bytes are kept for the backward pass."""
        if size:
            self.recorder.record.kept.append(Kept(layer=self.layer, kind=kind, bytes=size, event=self.event, kept=True))

    def save_bf16(self, t: Tensor) -> None:
        """Say that a tensor is kept as bf16 for the backward pass: itself, or a copy of it."""
        if t.dtype == torch.bfloat16:
            self.recorder.save(t, self.event)
        else:
            self.keep("activation", 2 * t.numel())

    def use(self, size: int, *, backward: bool) -> None:
        """Say that bytes are used on the way."""
        if size:
            item = Kept(layer=self.layer, kind="workspace", bytes=size, event=self.event, backward=backward)
            self.recorder.record.kept.append(item)

    def work(self, role: str, kind: str, operations: int, read: int = 0, written: int = 0) -> None:
        """Say what is done element by element."""
        if operations:
            self.recorder.record.work.append(
                VectorWork(
                    layer=self.layer,
                    role=role,
                    kind=kind,
                    operations=operations,
                    bytes_read=read,
                    bytes_written=written,
                )
            )

    def quantize(self, role: str, elements: int, quantizer: Quantizer) -> None:
        """Say that a float tensor becomes codes."""
        each = QUANTIZE_OPS + (0 if quantizer.clipper is None else CLIP_OPS[quantizer.clipper.spec.form])
        each += DRAW_OPS if quantizer.spec.rounding == "stochastic" else 0
        self.work(role, "quantize", each * elements, FLOAT_BYTES * elements, elements)

    def cast(self, role: str, elements: int) -> None:
        """Say that a float tensor becomes bf16."""
        self.work(role, "elementwise", elements, FLOAT_BYTES * elements, 2 * elements)

    def epilogue(self, y: Tensor, steps: Epilogue | None, *, differentiable: bool, coded: bool = False) -> None:
        """Say what ReLU and pooling of y keep and do; `coded`: its gradient is quantised before it is spread."""
        if steps is None:
            return
        mask = mask_bytes(y, steps) if differentiable else 0
        self.keep("mask", mask)
        if steps.relu:
            self.work("output", "elementwise", y.numel(), 0, mask if steps.pool == 1 else 0)
        if steps.pool > 1:
            self.work("output", "pool", y.numel(), 0, mask)
        if differentiable and coded:
            # ReLU's mask is a part of quantising; codes are spread over their windows.
            spread = (outputs(y, steps), y.numel()) if steps.pool > 1 else (0, 0)
            self.work("grad_input", _kind(steps), y.numel(), mask + spread[0], spread[1])
        elif differentiable:
            read = mask + FLOAT_BYTES * outputs(y, steps)
            self.work("grad_input", _kind(steps), y.numel(), read, FLOAT_BYTES * y.numel())


def _kind(steps: Epilogue) -> str:
    return "pool" if steps.pool > 1 else "elementwise"


def as_float(y: Tensor, steps: Epilogue | None) -> Tensor:
    """Return ReLU and pooling of y by torch's own operations."""
    if steps is None:
        return y
    y = F.relu(y) if steps.relu else y
    return F.max_pool2d(y, steps.pool) if steps.pool > 1 else y


def outputs(y: Tensor, steps: Epilogue | None) -> int:
    """Elements that ReLU and pooling leave of y."""
    pool = 1 if steps is None else steps.pool
    return y.numel() if pool == 1 else y.shape[0] * y.shape[1] * (y.shape[2] // pool) * (y.shape[3] // pool)


def mask_bytes(y: Tensor, steps: Epilogue) -> int:
    """A bit an output, rows rounded up to bytes, or a byte a window."""
    if steps.pool > 1:
        return outputs(y, steps)
    return bits(y) if steps.relu else 0


def bits(t: Tensor) -> int:
    """Bytes of a bit for each element, the channels of a position rounded up to bytes."""
    channels = t.shape[1] if t.dim() == 4 else t.shape[-1]
    return t.numel() // channels * -(-channels // 8)
