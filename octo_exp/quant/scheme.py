"""A scheme is what `quant=` names: a precision for each of the three GEMMs and a quantiser for each operand."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.quant.clipping import ClipForm
from octo_exp.quant.compensation import Compensation
from octo_exp.quant.operand import OperandForm

ROLES = ("output", "grad_input", "grad_weight")
PRECISIONS = ("fp32", "bf16", "fake", "int8")
OPERANDS = ("x", "w", "g")
NORM_INPUTS = ("fp32", "bf16", "int8")
# The two operands that each GEMM multiplies.
ROLE_OPERANDS = {"output": ("x", "w"), "grad_input": ("g", "w"), "grad_weight": ("g", "x")}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Precision per role (fp32 | bf16 | fake | int8), quantiser per operand; PRC (clip) and LAC (compensation) or null.

    fp32, bf16: the float operands, multiplied in that type. fake: operands quantised and dequantised (an operand
    without a quantiser stays float), multiplied in fp32. int8: operands quantised, multiplied as integers.
    skip: layers kept in float: `first`, `last`, or name patterns. overrides: name pattern -> changed fields, e.g.
    {"features.*": {"bits": 4, "grad_weight": "bf16", "x": {"range": "hindsight"}}}.
    precision: Lightning's precision for everything that is not quantised.
    norm_input: what batch norms keep for the backward pass: fp32 | bf16 | int8.
    """

    name: str
    output: str
    grad_input: str
    grad_weight: str
    x: OperandForm | None
    w: OperandForm | None
    g: OperandForm | None
    clip: ClipForm | None
    compensation: Compensation | None
    skip: Sequence[str]
    overrides: Mapping[str, Mapping[str, Any]] | None
    precision: str
    bits: int
    norm_input: str

    def __post_init__(self) -> None:
        """Refuse combinations that could not run as they say."""
        if isinstance(self.skip, str) or not isinstance(self.skip, Sequence):
            raise UserError(f"quant.skip={self.skip!r} is no list; write it as one, as in quant.skip=[first,last]")
        _check_overrides(self.overrides)
        if self.norm_input not in NORM_INPUTS:
            raise UserError(f"quant.norm_input={self.norm_input!r}; choose one of {', '.join(NORM_INPUTS)}")
        for role in ROLES:
            if self.precision_of(role) not in PRECISIONS:
                raise UserError(f"quant.{role}={self.precision_of(role)!r}; choose one of {', '.join(PRECISIONS)}")
            missing = [o for o in ROLE_OPERANDS[role] if self.operand(o) is None]
            if self.precision_of(role) == "int8" and missing:
                raise UserError(f"quant.{role}=int8 needs a quantiser for {' and '.join(missing)}")
        self._check_operands()
        self._check_compensation()

    def _check_operands(self) -> None:
        for operand in OPERANDS:
            spec = self.operand(operand)
            if spec is not None and not isinstance(spec, OperandForm):
                raise UserError(
                    f"quant.{operand} is no form of a quantiser: give its class, as in conf/quant/int8.yaml"
                )
            if spec is not None and operand not in spec.operands:
                kind = type(spec).__name__
                raise UserError(f"quant.{operand}: {kind} quantises {' and '.join(spec.operands)} only; choose another")
        for operand in ("x", "g"):
            spec = self.operand(operand)
            if spec is not None and spec.granularity == "channel":
                raise UserError(f"quant.{operand}.granularity=channel: the GEMM sums over that channel; only w may")
        if self.g is not None and not self.g.symmetric:
            raise UserError("quant.g.symmetric=false: gradients are quantised symmetrically around 0")
        if self.w is not None and not self.w.symmetric and "int8" in (self.output, self.grad_input):
            raise UserError("quant.w.symmetric=false: int8 products take weights with zero point 0; use fake roles")

    def _check_compensation(self) -> None:
        if self.compensation is None or not self.compensation.uses_zero_point:
            return
        if self.x is None or self.x.symmetric:
            raise UserError(
                "quant/compensation=zero_point compensates the zero point of x: set quant.x.symmetric=false, or choose "
                "quant/compensation=affine"
            )

    def precision_of(self, role: str) -> str:
        """Return the precision of one role."""
        value: str = getattr(self, role)
        return value

    def operand(self, name: str) -> OperandForm | None:
        """Return the quantiser spec of one operand."""
        value: OperandForm | None = getattr(self, name)
        return value

    @property
    def is_float(self) -> bool:
        """Whether every role stays in plain fp32: there is nothing to convert."""
        return all(self.precision_of(r) == "fp32" for r in ROLES)

    def quantized_in(self, operand: str) -> tuple[str, ...]:
        """Return the roles that use the quantised operand."""
        if self.operand(operand) is None:
            return ()
        return tuple(r for r in ROLES if operand in ROLE_OPERANDS[r] and self.precision_of(r) in ("fake", "int8"))

    def for_layer(self, name: str) -> "Scheme":
        """Return the scheme with every override whose pattern matches the layer's name applied, in order."""
        scheme = self
        for pattern, changes in (self.overrides or {}).items():
            if fnmatch.fnmatchcase(name, pattern):
                scheme = apply_override(scheme, pattern, changes)
        return scheme


def _check_overrides(overrides: Any) -> None:
    """UserError where it is not name pattern -> changed fields."""
    found = {} if overrides is None else overrides
    if not isinstance(found, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Mapping) for k, v in found.items()
    ):
        raise UserError(
            f"quant.overrides={overrides!r} does not map names of layers to fields; write {{features.*:{{bits:4}}}}, "
            "and a number in quotes"
        )


def apply_override(scheme: Scheme, pattern: str, changes: Mapping[str, Any]) -> Scheme:
    """Return the scheme with `changes`: roles, `bits` (of every operand), or fields of x, w, g, clip, compensation."""
    fields: dict[str, Any] = {}
    for key, value in changes.items():
        if key == "bits":
            for operand in OPERANDS:
                spec = fields.get(operand, scheme.operand(operand))
                fields[operand] = None if spec is None else dataclasses.replace(spec, bits=value)
            fields["bits"] = value
        elif key in ROLES:
            fields[key] = value
        elif key in (*OPERANDS, "clip", "compensation"):
            fields[key] = _replace_part(fields.get(key, getattr(scheme, key)), f"{pattern}.{key}", value)
        else:
            known = ", ".join((*ROLES, "bits", *OPERANDS, "clip", "compensation"))
            raise UserError(f"quant.overrides[{pattern!r}] has unknown key {key!r}; known: {known}")
    return dataclasses.replace(scheme, **fields)


def _replace_part(part: Any, where: str, value: Mapping[str, Any] | None) -> Any:
    if value is None:
        return None
    if part is None:
        raise UserError(f"quant.overrides: {where} is null in this scheme, so its fields cannot be changed")
    known = {f.name for f in dataclasses.fields(part)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise UserError(f"quant.overrides: {where} has no field {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return dataclasses.replace(part, **value)
