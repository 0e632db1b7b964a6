"""What one training step does, as shapes and widths: GEMMs, work of the vector unit, and what lies in memory when."""

from dataclasses import dataclass, replace
from typing import Self

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import check_number

ROLES = ("output", "grad_input", "grad_weight")
GRAD_INPUT_FORMS = ("col2im", "im2col")
WIDTHS = ("int8", "bf16", "fp32")
VECTOR_KINDS = ("quantize", "rescale", "elementwise", "pool", "norm", "col2im", "optimizer")
FLOAT_BYTES = 4
# Of an element; the arithmetic counts bytes of at most 8.
_MOST_BITS = 64
BUFFER_KINDS = ("weight", "activation", "mask", "gradient", "optimizer", "workspace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """`count` identical products a [m, k] x b [k, n] -> [m, n] that one layer does in one role.

    Attributes:
        layer: the layer's name in the network.
        role: output (the forward pass) | grad_input | grad_weight.
        m: rows of a.
        n: columns of b.
        k: the summed extent.
        count: number of identical products, e.g. the groups of a convolution.
        bits_a: width of an element of a.
        bits_b: width of an element of b.
        bits_out: width of an element of the result as it leaves the array.
        elements_a: distinct elements of a in memory, where windows overlap fewer than m * k; None: m * k.
        elements_b: distinct elements of b in memory; None: k * n.
        elements_out: elements of the result that leave, where pooling in the same pass drops some; None: m * n.

    Raises:
        UserError: an unknown role, an extent that is not a positive whole number, or more than 64 bits.

    """

    layer: str
    role: str
    m: int
    n: int
    k: int
    count: int
    bits_a: int
    bits_b: int
    bits_out: int = 32
    elements_a: int | None = None
    elements_b: int | None = None
    elements_out: int | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"layer {self.layer!r}: role must be one of {', '.join(ROLES)}, got {self.role!r}")
        whole = {"elements_a": self.m * self.k, "elements_b": self.k * self.n, "elements_out": self.m * self.n}
        for name, elements in whole.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, elements)
        for name in ("m", "n", "k", "count", "bits_a", "bits_b", "bits_out", *whole):
            high = _MOST_BITS if name.startswith("bits") else None
            check_number(f"layer {self.layer!r}", name, getattr(self, name), whole=True, high=high)

    @property
    def width(self) -> str:
        """The arithmetic it needs: int8 | bf16 (any 16-bit operand) | fp32, that of its wider operand."""
        bits = max(self.bits_a, self.bits_b)
        return "int8" if bits <= 8 else "bf16" if bits <= 16 else "fp32"

    @property
    def macs(self) -> int:
        """Multiply-accumulates, products with padding included: m * n * k * count."""
        return self.m * self.n * self.k * self.count

    @property
    def largest(self) -> int:
        """No count of one product passes it by more than a width in bytes: the MACs, if no element is read twice."""
        elements = max(self.m * self.k, self.elements_a or 0), max(self.k * self.n, self.elements_b or 0)
        return max(elements[0] * self.n, elements[1] * self.m, (self.elements_out or 0) * self.k, self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorWork:
    """What a layer does element by element in one role, beside its GEMM.

    Attributes:
        layer: the layer's name in the network.
        role: output | grad_input | grad_weight: the pass it belongs to; the optimizer's belongs to grad_weight.
        kind: one of VECTOR_KINDS.
        operations: operations on single elements.
        bytes_read: bytes of the tensors it reads.
        bytes_written: bytes of the tensors it writes.

    """

    layer: str
    role: str
    kind: str
    operations: int
    bytes_read: int
    bytes_written: int

    def __post_init__(self) -> None:
        for name, value, known in (("role", self.role, ROLES), ("kind", self.kind, VECTOR_KINDS)):
            if value not in known:
                raise UserError(f"layer {self.layer!r}: {name} must be one of {', '.join(known)}, got {value!r}")
        for name in ("operations", "bytes_read", "bytes_written"):
            count = getattr(self, name)
            if not isinstance(count, int) or count < 0:
                raise UserError(f"layer {self.layer!r}: {name} must be a whole number, 0 or more, got {count!r}")

    def __add__(self, other: "VectorWork") -> "VectorWork":
        """Both, of the same layer, role and kind."""
        return replace(
            self,
            operations=self.operations + other.operations,
            bytes_read=self.bytes_read + other.bytes_read,
            bytes_written=self.bytes_written + other.bytes_written,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """A piece of memory and the events of the step, `first` to `last` and both included, during which it is needed.

    Attributes:
        layer: the layer's name in the network.
        kind: one of BUFFER_KINDS.
        bytes: its size.
        first: the event before which it does not exist.
        last: the event after which it is free.
        kept: whether it is kept for the backward pass.

    """

    layer: str
    kind: str
    bytes: int
    first: int
    last: int
    kept: bool = False

    def __post_init__(self) -> None:
        if self.kind not in BUFFER_KINDS:
            raise UserError(f"layer {self.layer!r}: kind must be one of {', '.join(BUFFER_KINDS)}, got {self.kind!r}")
        if not 0 <= self.first <= self.last:
            raise UserError(f"layer {self.layer!r}: a buffer must not end before it begins: {self.first}..{self.last}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a training step does: its products, the work beside them, and its memory, in the order of the forward pass.

    `a + b` is the step that does both, where batch size and form agree.

    Attributes:
        gemms: for each layer output, grad_input, grad_weight; the gradients that are not computed are absent.
        vector: what is done beside the GEMMs, in the same order.
        buffers: what lies in memory; empty where only GEMMs are known.
        batch_size: images in the step.
        grad_input_form: col2im (dcol = dY * W, then scattered adds, which are not MACs) | im2col (a convolution of dY,
            padded and spread by the stride, whose products with zero count).

    Raises:
        UserError: an unknown form, a batch size below 1, or a sum of unlike workloads.

    """

    gemms: tuple[Gemm, ...]
    batch_size: int
    grad_input_form: str
    vector: tuple[VectorWork, ...] = ()
    buffers: tuple[Buffer, ...] = ()

    def __post_init__(self) -> None:
        check_number("workload", "batch_size", self.batch_size, whole=True)
        if self.grad_input_form not in GRAD_INPUT_FORMS:
            raise UserError(
                f"grad_input_form must be one of {', '.join(GRAD_INPUT_FORMS)}, got {self.grad_input_form!r}"
            )

    def __add__(self, other: Self) -> "Workload":
        if not isinstance(other, Workload):
            return NotImplemented
        for name in ("batch_size", "grad_input_form"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise UserError(f"workloads of different {name} cannot be added: {mine} and {theirs}")
        if self.buffers or other.buffers:
            raise UserError("workloads with buffers cannot be added: their events are those of one network")
        return replace(self, gemms=self.gemms + other.gemms, vector=self.vector + other.vector)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole step."""
        return sum(gemm.macs for gemm in self.gemms)

    def of_role(self, role: str) -> tuple[Gemm, ...]:
        """The GEMMs of one role, in order."""
        return tuple(gemm for gemm in self.gemms if gemm.role == role)
