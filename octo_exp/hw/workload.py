"""The GEMMs of one training step: shapes and operand widths, no tensors."""

from dataclasses import dataclass
from typing import Self

from octo_exp.errors import UserError
from octo_exp.hw.fields import check_number

ROLES = ("output", "grad_input", "grad_weight")
GRAD_INPUT_FORMS = ("col2im", "im2col")


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

    Raises:
        UserError: an unknown role or an extent that is not a positive whole number.

    """

    layer: str
    role: str
    m: int
    n: int
    k: int
    count: int
    bits_a: int
    bits_b: int

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"layer {self.layer!r}: role must be one of {', '.join(ROLES)}, got {self.role!r}")
        for name in ("m", "n", "k", "count", "bits_a", "bits_b"):
            check_number(f"layer {self.layer!r}", name, getattr(self, name), whole=True)

    @property
    def macs(self) -> int:
        """Multiply-accumulates, products with padding included: m * n * k * count."""
        return self.m * self.n * self.k * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a training step multiplies, in the order of the forward pass.

    `a + b` is the step that does both, where batch size and form agree.

    Attributes:
        gemms: for each layer output, grad_input, grad_weight; the gradients that are not computed are absent.
        batch_size: images in the step.
        grad_input_form: col2im (dcol = dY * W, then scattered adds, which are not MACs) | im2col (a convolution of dY,
            padded and spread by the stride, whose products with zero count).

    Raises:
        UserError: an unknown form, a batch size below 1, or a sum of unlike workloads.

    """

    gemms: tuple[Gemm, ...]
    batch_size: int
    grad_input_form: str

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
        return Workload(
            gemms=self.gemms + other.gemms, batch_size=self.batch_size, grad_input_form=self.grad_input_form
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole step."""
        return sum(gemm.macs for gemm in self.gemms)

    def of_role(self, role: str) -> tuple[Gemm, ...]:
        """The GEMMs of one role, in order."""
        return tuple(gemm for gemm in self.gemms if gemm.role == role)
