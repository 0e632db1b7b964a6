"""LSQ: the codes, the first step, and every gradient against its equations in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octo_exp
from octo_exp.base.errors import UserError
from octo_exp.nn.layers import QuantConv2d
from octo_exp.quant.forms import TINY
from octo_exp.quant.lsq import LearnedStep, Lsq, LsqQuantizer
from octo_exp.quant.rounding import Clock


def quantizer(*, bits: int = 4, symmetric: bool = True, operand: str = "x", **where) -> LsqQuantizer:
    granularity = "channel" if "channels" in where else "tensor"
    form = Lsq(bits=bits, symmetric=symmetric, granularity=granularity)
    return form.build(operand=operand, layer="layer", clock=Clock(), stored=operand == "x", **where)


def reference(t: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """The equations, by torch's own gradients: what is rounded passes its gradient, and the step's is scaled."""
    factor = 1 / math.sqrt(t.numel() * high)
    scaled = (step * factor) + (step - step * factor).detach()
    v = (t / scaled).clamp(low, high)
    return ((v.round() - v).detach() + v) * scaled


LIMITS = {(4, True): (-7, 7), (4, False): (0, 15), (8, True): (-127, 127), (8, False): (0, 255)}


@pytest.mark.parametrize(("bits", "symmetric"), LIMITS)
@pytest.mark.parametrize("channels", [False, True])
def test_both_gradients_are_those_of_the_equations(bits, symmetric, channels):
    low, high = LIMITS[bits, symmetric]
    t = torch.randn(6, 5, 3, 3, dtype=torch.float64).requires_grad_()
    size = (6, 1, 1, 1) if channels else ()
    # Some of t lies outside on either side.
    step = (torch.rand(size, dtype=torch.float64) + 0.5).div(high).requires_grad_()
    g = torch.randn_like(t)
    expected = torch.autograd.grad(reference(t, step, low, high), (t, step), g)
    found = torch.autograd.grad(LearnedStep.apply(t, step, low, high, 1 / math.sqrt(t.numel() * high)), (t, step), g)
    assert (expected[0] == 0).any()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("bits", "symmetric"), LIMITS)
def test_codes_are_those_of_the_equation_and_int8(bits, symmetric):
    q = quantizer(bits=bits, symmetric=symmetric)
    q.train()
    t = torch.randn(64, 33)
    coded = q(t)
    low, high = LIMITS[bits, symmetric]
    step = q.step.detach()
    assert torch.equal(step, 2 * t.abs().mean() / math.sqrt(high))
    assert coded.values.dtype == torch.int8
    zero = 0 if symmetric else -(2 ** (bits - 1))
    assert (coded.zero_point is None) == symmetric
    expected = (t.double() / step.double()).clamp(low, high).round() + zero
    # At a half, float32's quotient may round to the other side.
    halves = ((t.double() / step.double()) % 1 - 0.5).abs() < 1e-5
    assert torch.equal(coded.values[~halves].double(), expected[~halves])
    assert torch.equal(coded.dequantize(), (coded.values - zero) * step)


def test_the_first_batch_sets_the_step_and_no_later_one():
    q = quantizer()
    first, later = torch.randn(100), 5 * torch.randn(100)
    q(first)
    step = q.step.detach().clone()
    assert torch.equal(q(later).scale, step)
    assert torch.equal(q.step.detach(), step)


def test_a_batch_that_is_not_finite_sets_nothing():
    q = quantizer()
    q(torch.tensor([1.0, math.nan]))
    q(torch.ones(3), step=torch.tensor(math.inf))
    assert (q.step.item(), q.count.item()) == (0, 0)
    q(torch.ones(3))
    assert q.count.item() == 1


def test_evaluation_before_any_batch_is_refused_for_activations():
    q = quantizer().eval()
    with pytest.raises(UserError, match="layer 'layer' has no stored range for operand x: train it"):
        q(torch.ones(3))
    # Weights are there.
    assert quantizer(operand="w").eval()(torch.ones(3)).scale > 0


def test_a_step_below_zero_is_still_a_scale():
    q = quantizer()
    q(torch.ones(3))
    with torch.no_grad():
        q.step.fill_(-1.0)
    assert q(torch.ones(3)).scale == TINY


def net(**changes) -> nn.Sequential:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.Flatten())
    octo_exp.quantize(plain, "lsq", skip=[], **changes)
    return plain


def test_a_layer_has_the_gradients_of_the_equations():
    """Products of codes are exact on both sides: what is left are float32 sums of the backward pass."""
    layers = net(bits=4)
    images = torch.rand(5, 3, 8, 8)
    layers(images)
    layer = layers[2]
    # From the first batch on; the ReLU is fused to the layer before.
    x = torch.rand(5, 4, 8, 8).requires_grad_()
    y = layer(x)
    g = torch.randn_like(y)
    parts = [layer.weight, layer.bias, layer.quantizer_x.step, layer.quantizer_w.step]
    found = torch.autograd.grad(y, (x, *parts), g)
    doubles = [p.detach().double().requires_grad_() for p in (x, *parts)]
    dx, w, bias, step_x, step_w = doubles
    expected_y = F.conv2d(reference(dx, step_x, 0, 15), reference(w, step_w, -7, 7), bias, padding=1)
    expected = torch.autograd.grad(expected_y, doubles, g.double())
    torch.testing.assert_close(y.double(), expected_y.detach(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5 * scale)


def test_the_forward_product_is_of_int8_codes(monkeypatch):
    seen: list[torch.dtype] = []
    layers = net()
    op = type(layers[2].op)
    output = op.output

    def watched(self, x, w, *rest):
        seen.extend((x.dtype, w.dtype))
        return output(self, x, w, *rest)

    monkeypatch.setattr(op, "output", watched)
    layers(torch.rand(2, 3, 8, 8))
    assert seen == [torch.int8] * 4


def test_steps_are_parameters_without_decay_that_travel_in_the_state_dict():
    layers = net()
    x = torch.rand(4, 3, 8, 8)
    groups = octo_exp.parameter_groups(layers, lr=0.1)
    steps = {id(m.step) for m in layers.modules() if isinstance(m, LsqQuantizer)}
    assert len(steps) == 4
    (learned,) = [group for group in groups if {id(p) for p in group["params"]} == steps]
    assert learned["weight_decay"] == 0
    assert [len(group["params"]) for group in groups] == [4, 4]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for _ in range(3):
        layers(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    other = net()
    other.load_state_dict(layers.state_dict())
    assert torch.equal(other.eval()(x), layers.eval()(x))
    assert torch.equal(copy.deepcopy(layers)(x), layers(x))
    conv = other[2]
    assert isinstance(conv, QuantConv2d)
    assert conv.quantizer_w.step.shape == (6, 1, 1, 1)
    assert conv.quantizer_x.step.shape == ()


def test_frozen_layers_and_passes_without_gradients_learn_no_step():
    layers = net()
    with torch.no_grad():
        assert not layers(torch.rand(2, 3, 8, 8)).requires_grad
    for parameter in layers.parameters():
        parameter.requires_grad_(False)
    assert not layers(torch.rand(2, 3, 8, 8)).requires_grad


def test_int8_in_all_three_gemms_and_four_bits_train():
    layers = net(bits=4, grad_input="int8", grad_weight="int8", g=octo_exp.scheme("int8").g)
    head = nn.Linear(6 * 64, 2)
    groups = [*octo_exp.parameter_groups(layers, lr=0.05), {"params": head.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    x = torch.rand(32, 3, 8, 8)
    label = (x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))).long()
    losses, first = [], None
    for _ in range(40):
        loss = F.cross_entropy(head(layers(x)), label)
        losses.append(loss.item())
        first = first or [m.step.detach().clone() for m in layers.modules() if isinstance(m, LsqQuantizer)]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    last = [m.step for m in layers.modules() if isinstance(m, LsqQuantizer)]
    assert all((before != after).any() for before, after in zip(first, last, strict=True))


def test_a_gradient_has_no_learned_step():
    form = Lsq(bits=8, symmetric=True, granularity="tensor")
    with pytest.raises(UserError, match=r"^quant\.g: Lsq quantises x and w only; choose another$"):
        octo_exp.scheme("lsq", g=form)


def test_what_is_no_form_is_named():
    with pytest.raises(UserError, match=r"quant\.g is no form of a quantiser: give its class"):
        octo_exp.scheme("lsq", g=octo_exp.scheme("prc").clip)


def test_what_the_form_does_not_take_is_refused():
    with pytest.raises(UserError, match=r"^bits must be 2 to 8 \(codes are stored as int8\), got 9$"):
        Lsq(bits=9, symmetric=True, granularity="tensor")
    with pytest.raises(UserError, match="granularity=channel needs symmetric=true"):
        Lsq(bits=8, symmetric=False, granularity="channel")
