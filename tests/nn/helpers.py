"""Schemes and layers for the tests of nn, built from the shipped yaml files."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from octo_exp.nn.convert import convert
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.clipping import ClipForm
from octo_exp.quant.forms import PerTensor
from octo_exp.quant.quantizer import OperandSpec
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import ROLE_OPERANDS, ROLES, Scheme
from tests.configs import compose_copy, node_of, options, target_of

# What else `quant=` names: tests/test_native.py, tests/test_posttraining.py.
SCHEMES = [name for name in options("quant") if target_of("quant", name) == "octo_exp.quant.scheme.Scheme"]
CONVERTING = [name for name in SCHEMES if not {node_of("quant", name)[role] for role in ROLES} <= {"fp32"}]
# How far a product may be off, in errors of its operands: few sums, of data with few values, scatter.
SPREAD = 4.0


def scheme(name: str, **changes: Any) -> Scheme:
    """The shipped scheme `name`, no layer skipped; changes by dotted key with '__' for '.'."""
    overrides = [f"+quant={name}", "quant.skip=[]"]
    # Forms are options of groups.
    places = {
        key: f"quant/{key}" if key in ("clip", "compensation") else f"quant.{key.replace('__', '.')}" for key in changes
    }
    overrides += [f"{places[key]}={value}" for key, value in changes.items()]
    built = instantiate(compose_copy(None, *overrides).quant, _convert_="all")
    assert isinstance(built, Scheme)
    return built


def quantized(
    module: nn.Module, built: Scheme, *, impl: str = "torch", clock: Clock | None = None, input_shape: Any = None
) -> QuantLayer:
    """One layer converted: the module is wrapped, converted and taken out again."""
    net = nn.Sequential(module)
    convert(net, built, impl=impl, clock=clock or Clock(), input_shape=input_shape)
    layer = net[0]
    assert isinstance(layer, QuantLayer)
    return layer


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected|, Frobenius norms in float64."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


def rounding_error(
    t: torch.Tensor, spec: OperandSpec | None, clip: ClipForm | None = None, channel_dim: int = 0
) -> float:
    """What rounding to the spec's bits, over its granularity's ranges, and clipping may do to t: |q - t| / |t|."""
    if spec is None:
        return 0.0
    own = sorted(spec.granularity.own(t.dim(), channel_dim)) if spec.granularity != PerTensor() else []
    rows = t.detach().permute(*own, *(d for d in range(t.dim()) if d not in own)).flatten(len(own))
    rows = rows.reshape(-1, rows.shape[-1])
    low, high = rows.amin(1), rows.amax(1)
    if clip is not None:
        low, high = clip.build().bounds(rows, low, high)
    codes = 2**spec.bits - 2 if spec.symmetric else 2**spec.bits - 1
    width = 2 * torch.maximum(low.abs(), high.abs()) if spec.symmetric else high.clamp(min=0) - low.clamp(max=0)
    # A code covers its width; what is rounded lies anywhere in it.
    rounded = (width / codes).square().mul(rows.shape[1] / 12).sum()
    cut = (rows - rows.clamp(low[:, None], high[:, None])).square().sum()
    return float(((rounded + cut) / rows.square().sum()).sqrt())


def product_budget(layer: QuantLayer, role: str, operands: Mapping[str, torch.Tensor]) -> float:
    """How far a role's product may be from that of its float operands, relative to it: by bits and granularity."""
    scheme = layer.scheme
    if scheme.precision_of(role) not in ("fake", "int8"):
        # bf16 has 8 bits of mantissa.
        return SPREAD * 2**-8
    errors = []
    for name in ROLE_OPERANDS[role]:
        key = scheme.key_of(role, name)
        scaled = f"{name}_scaled" if role == "grad_input" and f"{name}_scaled" in operands else key
        clip, channel_dim = (scheme.clip if name == "g" else None), 0 if name == "w" else layer.op.channel_dim
        errors.append(
            rounding_error(operands[scaled], scheme.operand(key), clip, channel_dim) if scaled in operands else 0.0
        )
    return SPREAD * math.hypot(*errors)


def state(module: nn.Module) -> Mapping[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.clone() for name, value in module.state_dict().items()}
