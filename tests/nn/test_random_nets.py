"""Any network through conversion, a training step, evaluation and a state_dict: whole, finite, int8, and exact."""

import copy

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from octo_exp.nn.convert import convert
from octo_exp.nn.layers import QuantLayer
from octo_exp.nn.select import never_ran
from octo_exp.quant.rounding import Clock
from tests.nn.doors import watched_doors
from tests.nn.helpers import scheme
from tests.nn.random_nets import Drawn, Lora, networks

SCHEME = scheme("int8")


def converted(drawn: Drawn, impl: str) -> nn.Module:
    net = drawn.build()
    selection = convert(net, SCHEME, impl=impl, clock=Clock(), input_shape=drawn.shape)
    # Every layer has a verdict; what computes something else is the only one that stays float.
    assert list(selection.floats) == [name for name, module in net.named_modules() if isinstance(module, Lora)]
    assert selection.quantized == tuple(n for n, module in net.named_modules() if isinstance(module, QuantLayer))
    return net


def train(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    y = net(x.clone().requires_grad_())
    y.square().sum().backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    torch.optim.SGD(net.parameters(), lr=1e-3).step()
    return y.detach(), gradients


def check(drawn: Drawn) -> None:
    plain, net, exact = drawn.build(), converted(drawn, "torch"), converted(drawn, "reference")
    names = [name for name, _ in plain.named_modules(remove_duplicate=False)]
    mine = [name for name, _ in net.named_modules(remove_duplicate=False) if ".quantizer" not in name]
    assert mine == names
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [k for k in net.state_dict() if ".quantizer" not in k] == list(plain.state_dict())
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in plain.parameters()]
    x = torch.rand(drawn.batch, *drawn.shape)
    with watched_doors() as seen:
        y, gradients = train(net, x)
    layers = [module for module in net.modules() if isinstance(module, QuantLayer)]
    assert len(seen) >= 2 * len(layers)
    assert set(seen) == {torch.int8}
    assert never_ran(net) == {}
    assert all(module.hooked == 1 for module in net.modules() if hasattr(module, "hooked"))
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    # The order of a norm's float sums is torch's, and may be another one for another layout of the gradient.
    whole = not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    expected, exact_gradients = train(exact, x)
    names = [name for name, _ in net.named_parameters()]
    for name, ours, theirs in zip(["y", *names], [y, *gradients], [expected, *exact_gradients], strict=True):
        assert (ours is None) == (theirs is None)
        if whole and ours is not None:
            same(ours, theirs, exact=ours.dim() > 1 and "parametrizations" not in name)
    other = converted(drawn, "torch")
    for twin in (other, exact):
        twin.load_state_dict(copy.deepcopy(net.state_dict()))
    with torch.no_grad():
        y, again, by_reference = (module.eval()(x) for module in (net, other, exact))
    assert torch.isfinite(y).all()
    assert torch.equal(y, again)
    assert torch.equal(y, by_reference)


def same(ours: torch.Tensor, theirs: torch.Tensor, *, exact: bool) -> None:
    """Equal bit for bit, but for float sums in the layout's order: of a bias, of what makes a weight."""
    if exact:
        assert torch.equal(ours, theirs)
    else:
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@settings(max_examples=20)
@given(networks())
def test_a_random_network_is_quantised_whole_and_equals_the_reference(drawn):
    check(drawn)


@pytest.mark.slow
@settings(max_examples=300)
@given(networks())
def test_300_random_networks_are_quantised_whole_and_equal_the_reference(drawn):
    check(drawn)
