"""Ranges, roundings and granularities as forms: chosen by name or class, and one of a user's own is one class."""

import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import octo_exp
from octo_exp.base.errors import UserError
from octo_exp.config.allowed import rule_of
from octo_exp.quant.forms import (
    NAMED,
    Dynamic,
    Granularity,
    Hindsight,
    Nearest,
    PerRow,
    PerSample,
    PerTensor,
    RangeForm,
    Rounding,
    Stochastic,
    tensor_range,
)
from octo_exp.workload import Account
from tests.nn.helpers import quantized, relative, scheme


@dataclass(frozen=True, slots=True)
class TowardsZero(Rounding):
    """q = sign(v) * floor(|v|)."""

    name, operations = "towards_zero", 2

    def codes(self, kernel, t, key, limits):
        whole = (t / limits["scale"]).trunc() * limits["scale"]
        return kernel(whole, **limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share(RangeForm):
    """[c*min, c*max]."""

    name, operations, narrows = "share", 1, True
    c: float

    def measure(self, t, over):
        low, high = tensor_range(t, over)
        return self.c * low, self.c * high


def test_a_plain_name_stands_for_the_form_that_the_class_is():
    assert {name: form.name for name, form in NAMED.items()} == {name: name for name in NAMED}
    named = scheme("int8", g__rounding="stochastic", w__range="hindsight", w__granularity="tensor")
    assert (named.g.rounding, named.w.range, named.w.granularity) == (Stochastic(), Hindsight(), PerTensor())
    target = "{{_target_: octo_exp.quant.forms.{}}}"
    built = scheme("int8", g__rounding=target.format("Stochastic"), w__range=target.format("Hindsight"))
    assert built == named
    # From Python the same, and a part of it may be a mapping with a class.
    given = octo_exp.scheme(
        "int8", skip=[], g={"rounding": {"_target_": "octo_exp.quant.forms.Stochastic"}}, w={"range": "hindsight"}
    )
    assert given == named
    own = octo_exp.scheme("int8", g_weight={"granularity": "channel"})
    assert own.operand("g_weight") == replace(own.g, granularity="channel")


def test_a_key_that_the_chosen_form_has_not_is_refused():
    with pytest.raises(Exception, match="unexpected keyword argument 'momentum'"):
        scheme("int8", g__rounding="{_target_: octo_exp.quant.forms.Nearest, momentum: 0.5}")
    with pytest.raises(Exception, match=r"rounding=Dynamic\(\) is unknown; choose one of nearest, stochastic, or"):
        scheme("int8", g__rounding="{_target_: octo_exp.quant.forms.Dynamic}")


def test_a_rounding_of_ones_own_is_one_class():
    base = scheme("int8")
    layer = quantized(nn.Linear(8, 4), replace(base, x=replace(base.x, rounding=TowardsZero())))
    seen = {}
    layer.observer = lambda layer, operand, t, q: seen.update({operand: (t, q)})
    layer(torch.randn(5, 8)).sum().backward()
    t, q = seen["x"]
    assert torch.equal(q.values, (t / q.scale).trunc().to(torch.int8))
    assert not torch.equal(q.values, (t / q.scale).round().to(torch.int8))
    assert layer.quantizer_x.operations == layer.quantizer_w.operations + 2


def test_a_range_of_ones_own_is_one_class_whose_gradient_ends_with_it():
    base = scheme("int8")
    layer = quantized(nn.Linear(4, 3), replace(base, x=replace(base.x, range=Share(c=0.5))))
    x = torch.tensor([[-4.0, 1.0, 1.9, 3.0]], requires_grad=True)
    layer(x).sum().backward()
    assert (x.grad == 0).tolist() == [[True, False, False, True]]
    assert float(layer.quantizer_x.high) == 1.5
    assert layer.quantizer_x.operations == layer.quantizer_w.operations + 1
    account = Account(layer="0", call="0", x_shape=(1, 4), x_bits=32, grad_input=True, differentiable=True)
    layer.account(account)
    assert [held.bytes for held in account.held if held.kind == "mask"] == [1]


def test_a_granularity_of_ones_own_says_where_it_leaves_the_sum():
    @dataclass(frozen=True, slots=True)
    class PerHalf(Granularity):
        """One a sample, under another name; only for the gradient of the input."""

        name, each, operands = "half", "a half", ("g",)
        leaves = frozenset({("grad_input", "g")})

        def own(self, dims, channel_dim):
            return {0}

    base = scheme("int8")
    g = replace(base.g, granularity=PerHalf())
    with pytest.raises(UserError, match=re.escape("grad_weight sums over samples and positions, and a scale a half")):
        replace(base, g=g)
    plain, ours = nn.Linear(6, 4), replace(base, g=g, g_weight={"granularity": "tensor"})
    layer, x = quantized(plain, ours), torch.randn(3, 6, requires_grad=True)
    sizes = torch.tensor([[1.0], [100.0], [1e4]])
    layer(x).backward(sizes.expand(3, 4))
    wanted = sizes * layer.weight.detach().sum(0)
    assert all(relative(x.grad[i], wanted[i]) <= 0.02 for i in range(3))


@pytest.mark.parametrize("form", [PerSample(), PerRow()])
def test_the_dimensions_that_share_a_scale(form):
    assert form.over(2, -1) == (1,)
    assert form.over(3, -1) == ((1, 2) if form == PerSample() else (2,))
    # A vector is one sample, and one row.
    assert form.over(1, -1) == (0,)
    assert form.scales((5, 3, 12), -1) == (5 if form == PerSample() else 15)


def test_forms_are_values():
    assert Nearest() == Nearest() != Stochastic()
    assert len({Dynamic(), Dynamic(), Hindsight()}) == 2


@pytest.mark.parametrize("part", ["rounding", "range", "granularity"])
def test_the_command_line_takes_a_name_or_a_class_for_a_form(part):
    rule = rule_of(f"quant.g.{part}")
    rule.check(part, "stochastic")
    rule.check(part, {"_target_": "octo_exp.quant.forms.Stochastic"})
    for wrong in ({"momentum": 0.5}, ["nearest"]):
        with pytest.raises(UserError, match=r"expects a name, or \{_target_: \.\.\.\} of a form"):
            rule.check(part, wrong)
