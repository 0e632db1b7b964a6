"""A scheme is what `quant=` names: a precision for each of the three GEMMs and a quantiser for each operand."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.quant.clipping import ClipForm
from octo_exp.quant.compensation import Compensation
from octo_exp.quant.forms import PerTensor
from octo_exp.quant.quantizer import OperandForm

ROLES = ("output", "grad_input", "grad_weight")
PRECISIONS = ("fp32", "bf16", "fake", "int8")
OPERANDS = ("x", "w", "g")
NORM_INPUTS = ("fp32", "bf16", "int8")
# The two operands that each GEMM multiplies.
ROLE_OPERANDS = {"output": ("x", "w"), "grad_input": ("g", "w"), "grad_weight": ("g", "x")}
# An operand that a role may quantise by itself, and the operand that it is of.
OWN = {"x_weight": ("grad_weight", "x"), "w_input": ("grad_input", "w"), "g_weight": ("grad_weight", "g")}
_SUMS = {"output": "input channels and taps", "grad_input": "output channels", "grad_weight": "samples and positions"}
_QUANTIZED = ("fake", "int8")
# What an override changes fields of.
_PARTS = (*OPERANDS, *OWN, "clip", "compensation")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Precision per role (fp32 | bf16 | fake | int8), quantiser per operand; PRC (clip) and LAC (compensation) or null.

    fp32, bf16: the float operands, multiplied in that type. fake: operands quantised and dequantised (an operand
    without a quantiser stays float), multiplied in fp32. int8: operands quantised, multiplied as integers.
    skip: layers kept in float: `first`, `last`, or name patterns. overrides: name pattern -> changed fields, e.g.
    {"features.*": {"bits": 4, "grad_weight": "bf16", "x": {"range": "hindsight"}}}.
    precision: Lightning's precision for everything that is not quantised.
    norm_input: what batch norms keep for the backward pass: fp32 | bf16 | int8.
    x_weight, g_weight: how grad_weight quantises x and g by itself, w_input: how grad_input does w: a form, changed
    fields of x, g and w, e.g. {"granularity": "channel"}, or null: the role takes the codes that the other one has.
    """

    name: str
    output: str
    grad_input: str
    grad_weight: str
    x: OperandForm | None
    w: OperandForm | None
    g: OperandForm | None
    x_weight: OperandForm | Mapping[str, Any] | None
    w_input: OperandForm | Mapping[str, Any] | None
    g_weight: OperandForm | Mapping[str, Any] | None
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
            missing = [o for o in ROLE_OPERANDS[role] if self.operand(self.key_of(role, o)) is None]
            if self.precision_of(role) == "int8" and missing:
                raise UserError(f"quant.{role}=int8 needs a quantiser for {' and '.join(missing)}")
        for key in (*OPERANDS, *OWN):
            self._check_operand(key, self.operand(key))
        for role in ROLES:
            for operand in ROLE_OPERANDS[role]:
                self._check_carried(role, operand)
        self._check_compensation()

    def _check_operand(self, key: str, spec: OperandForm | None) -> None:
        if spec is None:
            return
        if not isinstance(spec, OperandForm):
            raise UserError(f"quant.{key} is no form of a quantiser: give its class, as in conf/quant/int8.yaml")
        if key not in spec.operands:
            kind = type(spec).__name__
            raise UserError(f"quant.{key}: {kind} quantises {' and '.join(spec.operands)} only; choose another")
        if key[0] not in spec.granularity.operands:
            raise UserError(f"quant.{key}.granularity={spec.granularity.name}: {key[0]} has none; choose tensor")
        if key[0] == "g" and not spec.symmetric:
            raise UserError(f"quant.{key}.symmetric=false: gradients are quantised symmetrically around 0")
        if (
            key[0] == "g"
            and self.clip is not None
            and self.clip.per_tensor
            and not isinstance(spec.granularity, PerTensor)
        ):
            raise UserError(
                f"quant.{key}.granularity={spec.granularity.name}: {type(self.clip).__name__} clips a whole tensor; "
                "choose quant/clip=ratio, or null"
            )
        if key[0] == "w" and not spec.symmetric and "int8" in (self.output, self.grad_input):
            raise UserError(
                f"quant.{key}.symmetric=false: int8 products take weights with zero point 0; use fake roles"
            )

    def _check_carried(self, role: str, operand: str) -> None:
        """Refuse a scale that varies along what an integer product sums over; floats are simulated as they are told."""
        key = self.key_of(role, operand)
        spec = self.operand(key)
        if spec is None or self.precision_of(role) != "int8" or (role, operand) in spec.granularity.leaves:
            return
        raise UserError(
            f"quant.{key}.granularity={spec.granularity.name}: {role} sums over {_SUMS[role]}, and a scale "
            f"{spec.granularity.each} cannot leave its sum; {self._remedy(role, key, spec)}"
        )

    def _remedy(self, role: str, key: str, spec: OperandForm) -> str:
        for own, place in OWN.items():
            if place == (role, key):
                return f"quant.{own}={{granularity:tensor}} gives {role} codes of its own"
            if place[1] == key and place in spec.granularity.leaves:
                return f"choose tensor here, and quant.{own}={{granularity:{spec.granularity.name}}} for {place[0]}"
        return "choose tensor"

    def _check_compensation(self) -> None:
        if self.compensation is None or not self.compensation.uses_zero_point:
            return
        if self.x is None or self.x.symmetric:
            raise UserError(
                "quant/compensation=zero_point compensates the zero point of x: set quant.x.symmetric=false, or choose "
                "quant/compensation=affine"
            )
        if self.w is not None and ("output", "w") not in self.w.granularity.leaves:
            raise UserError(
                f"quant/compensation=zero_point sums codes of w, which quant.w.granularity={self.w.granularity.name} "
                "scales one by one; choose tensor or channel, or quant/compensation=affine"
            )

    def precision_of(self, role: str) -> str:
        """Return the precision of one role."""
        value: str = getattr(self, role)
        return value

    def operand(self, key: str) -> OperandForm | None:
        """Return how x, w or g is quantised, or what a role quantises by itself; None: not at all."""
        value: Any = getattr(self, key)
        if key in OWN and isinstance(value, Mapping):
            base = self.operand(OWN[key][1])
            return base if base is None else _replace_part(base, f"quant.{key}", value)
        form: OperandForm | None = value
        return form

    def key_of(self, role: str, operand: str) -> str:
        """Return which quantisation of x, w or g a role takes: the shared one, or its own."""
        return next((own for own, place in OWN.items() if place == (role, operand) and self.operand(own)), operand)

    @property
    def is_float(self) -> bool:
        """Whether every role stays in plain fp32: there is nothing to convert."""
        return all(self.precision_of(r) == "fp32" for r in ROLES)

    def quantized_in(self, key: str) -> tuple[str, ...]:
        """Return the roles that use a quantisation of x, w or g."""
        if self.operand(key) is None:
            return ()
        taken = {role: [self.key_of(role, operand) for operand in ROLE_OPERANDS[role]] for role in ROLES}
        return tuple(role for role in ROLES if key in taken[role] and self.precision_of(role) in _QUANTIZED)

    def check_layer(self, name: str, *, is_convolution: bool) -> None:
        """Raise UserError where a layer's codes cannot have the scales that the scheme says."""
        for key in (*OPERANDS, *OWN):
            spec = self.operand(key)
            if is_convolution and spec is not None and not spec.granularity.in_convolutions:
                raise UserError(
                    f"layer {name!r}: quant.{key}.granularity={spec.granularity.name}: a convolution's codes are made "
                    "before im2col, whose rows share them, so none has a scale of its own; choose granularity=sample, "
                    "by quant.overrides for this layer alone"
                )

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
            for operand in (*OPERANDS, *OWN):
                part = fields.get(operand, getattr(scheme, operand))
                # Changed fields of an operand that say nothing of bits have the operand's.
                keeps = part is None or (isinstance(part, Mapping) and "bits" not in part)
                fields[operand] = part if keeps else _replace_part(part, f"quant.{operand}", {"bits": value})
            fields["bits"] = value
        elif key in ROLES:
            fields[key] = value
        elif key in _PARTS:
            fields[key] = _replace_part(
                fields.get(key, getattr(scheme, key)), f"quant.overrides: {pattern}.{key}", value
            )
        else:
            known = ", ".join((*ROLES, "bits", *_PARTS))
            raise UserError(f"quant.overrides[{pattern!r}] has unknown key {key!r}; known: {known}")
    return dataclasses.replace(scheme, **fields)


def _replace_part(part: Any, where: str, value: Mapping[str, Any] | None) -> Any:
    """Return a form, or changes of one, with some fields changed; `value` itself in the place of a role's own null."""
    if value is None:
        return None
    if isinstance(part, Mapping) or (part is None and where.rpartition(".")[2] in OWN):
        return {**(part or {}), **value}
    if part is None:
        raise UserError(f"{where} is null in this scheme, so its fields cannot be changed")
    known = {f.name for f in dataclasses.fields(part)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise UserError(f"{where} has no field {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return dataclasses.replace(part, **value)
