"""What is not finite leaves what is stored as it was."""

import copy
import math

import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.quant.quantizer import OperandSpec, RangeQuantizer
from octo_exp.quant.rounding import Clock
from tests.quant.helpers import CLIPS, clipping

BAD = [math.nan, math.inf, -math.inf]
CLIP = {"coefficient": 0.9, "z": 2.5, "rho_init": 0.8, "learning_rate": 0.1}


def quantizer(operand: str, form: str | None = None, impl: str = "reference", **changes) -> RangeQuantizer:
    values = {"bits": 8, "symmetric": True, "granularity": "tensor", "rounding": "nearest", "range": "dynamic"}
    spec = OperandSpec(**({**values, "momentum": 0.9} | changes))
    clip = None if form is None else clipping(form, **CLIP)
    options = {"operand": operand, "layer": "layer", "clock": Clock(), "stored": operand == "x", "clip": clip}
    return RangeQuantizer(spec, **options, impl=impl)


def tensors(*peaks: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 40, generator=generator) * peak for peak in peaks]


def spoiled(t: torch.Tensor, value: float) -> torch.Tensor:
    t = t.clone()
    t[1, 7] = value
    return t


def buffers(q: RangeQuantizer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in q.named_buffers()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("range_", ["dynamic", "hindsight"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(("operand", "form"), [("x", None), ("w", None), *[("g", form) for form in (None, *CLIPS)]])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_step_that_is_not_finite_stores_nothing(impl, bad, range_, rounding, operand, form, symmetric):
    options = {"range": range_, "rounding": rounding, "symmetric": symmetric}
    q = quantizer(operand, form, impl, **options)
    before, step, after = tensors(1.0, 5.0, 2.0)
    q(before)
    other = copy.deepcopy(q)
    stored = buffers(q)
    codes = q(spoiled(step, bad))
    assert same(buffers(q), stored)
    assert codes.values.dtype == torch.int8
    # The step says so everywhere: nothing finite comes of it that others could store.
    assert codes.dequantize().isnan().all() or (operand, range_, form) in {
        ("w", "dynamic", None),
        ("g", "dynamic", form),
    }
    assert torch.equal(q(after).values, other(after).values)
    assert same(buffers(q), buffers(other))
    assert not same(buffers(q), stored) or not q.tracks


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("range_", ["dynamic", "hindsight"])
def test_a_first_step_that_is_not_finite_is_none(bad, range_):
    q, other = quantizer("x", range=range_), quantizer("x", range=range_)
    first, second = tensors(1.0, 2.0)
    q(spoiled(first, bad))
    q.eval()
    with pytest.raises(UserError, match="no stored range"):
        q(first)
    q.train()
    assert torch.equal(q(second).values, other(second).values)
    assert same(buffers(q), buffers(other))


@pytest.mark.parametrize("bad", BAD)
def test_a_channel_that_is_not_finite_stores_nothing(bad):
    q = quantizer("w", granularity="channel")
    w, _ = tensors(1.0, 1.0)
    stored = buffers(q)
    good = q(w)
    q(spoiled(w, bad))
    assert same(buffers(q), stored)
    assert torch.equal(q(w).scale, good.scale)


def test_the_largest_numbers_are_finite():
    q = quantizer("x")
    huge = torch.tensor([-1.0, 1.0]) * torch.finfo(torch.float32).max
    for _ in range(20):
        q(huge)
        assert all(value.isfinite() for value in buffers(q).values())
    assert q.count >= 1
