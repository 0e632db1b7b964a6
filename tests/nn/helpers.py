"""Schemes and layers for the tests of nn, built from the shipped yaml files."""

from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from octo_exp.nn.convert import convert
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import Scheme
from tests.configs import CONF, compose_copy

# These are no schemes of float nets: tests/test_native.py, tests/test_posttraining.py.
SCHEMES = sorted(path.stem for path in (CONF / "quant").glob("*.yaml") if path.stem not in ("native", "ptq"))
CONVERTING = [name for name in SCHEMES if name not in ("fp32", "bf16")]


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


def state(module: nn.Module) -> Mapping[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.clone() for name, value in module.state_dict().items()}
