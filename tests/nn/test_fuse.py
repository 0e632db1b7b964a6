"""ReLU and pooling in the layers' epilogues: the same net, bit for bit, that keeps bits instead of floats."""

import copy
import io
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

from octo_exp.models.resnet import BasicBlock
from octo_exp.nn.activation import Activation
from octo_exp.nn.become import become
from octo_exp.nn.convert import convert
from octo_exp.nn.float_block import FloatConv2d, FloatLinear
from octo_exp.nn.fuse import fuse
from octo_exp.nn.layers import QuantConv2d, QuantLayer, QuantLinear
from octo_exp.quant.rounding import Clock
from octo_exp.tracing import trace
from octo_exp.workload import Epilogue
from tests.nn.helpers import relative, scheme, state

SHAPE = (3, 15, 14)


def plain_net() -> nn.Sequential:
    """Every kind of step behind every kind of layer."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 7, 3, padding=1),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(7, 16, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d((2, 2), stride=2),
            conv3=nn.Conv2d(16, 9, 1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(9, 8, 3, padding=1),
            pool4=nn.MaxPool2d(3),
            flat=nn.Flatten(),
            fc1=nn.Linear(8, 17),
            relu5=nn.ReLU(),
            fc2=nn.Linear(17, 5),
        )
    )


def residual_net() -> nn.Sequential:
    return nn.Sequential(BasicBlock(3, 8, stride=2, norm="batch"), BasicBlock(8, 8, stride=1, norm="none"))


def converted(net: nn.Module, name: str = "int8", *, impl: str = "torch", **changes: object) -> nn.Module:
    convert(net, scheme(name, **changes), impl=impl, clock=Clock())
    return net


def unfused(net: nn.Module) -> nn.Module:
    """A copy whose ReLUs and pools stand by themselves, as torch's own modules."""
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        if isinstance(parent, QuantLayer):
            parent.steps = None
        for name, child in list(parent.named_children()):
            if isinstance(child, Activation):
                pool = [nn.MaxPool2d(child.steps.pool)] if child.steps.pool > 1 else []
                setattr(parent, name, nn.Sequential(*[nn.ReLU()] * child.steps.relu, *pool))
            elif isinstance(child, FloatConv2d):
                child.steps = None
    return net


def step(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
    return y.detach(), [x.grad, *(p.grad for p in net.parameters() if p.grad is not None)]


def same(a: torch.Tensor, b: torch.Tensor, *, exact: bool) -> None:
    """Equal bit for bit, but for float sums that leave out zeros: of a bias, and of float operands (exact=False)."""
    if exact and a.dim() > 1:
        assert torch.equal(a, b)
    # Two orders of the sum over 6*15*14 positions differ by 2*1260*2^-24 of its terms at most.
    assert relative(a, b) <= 1.5e-4


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("name", ["int8", "octo", "octo_ec", "fake_qat"])
@pytest.mark.parametrize("skip", ["[]", "[first,last]"])
def test_the_fused_net_is_the_unfused_one_bit_for_bit(skip, name, impl):
    net = converted(plain_net(), name, impl=impl, skip=skip)
    plain, x = unfused(net), torch.randn(6, *SHAPE)
    fused, expected = step(net, x), step(plain, x)
    assert torch.equal(fused[0], expected[0])
    assert len(fused[1]) == len(expected[1])
    for a, b in zip(fused[1], expected[1], strict=True):
        same(a, b, exact=skip == "[]" and name != "fake_qat")
    assert torch.equal(net.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("name", ["int8", "octo"])
def test_a_residual_net_is_the_same_with_torchs_own_relu(name):
    net = converted(residual_net(), name)
    plain, x = unfused(net), torch.randn(4, *SHAPE)
    fused, expected = step(net, x), step(plain, x)
    assert torch.equal(fused[0], expected[0])
    for a, b in zip(fused[1], expected[1], strict=True):
        same(a, b, exact=True)


def test_what_is_swapped_and_who_does_the_steps():
    net = converted(plain_net(), skip="[first,last]")
    kinds = {name: type(module) for name, module in net.named_children()}
    assert kinds["conv1"] is FloatConv2d
    assert [kinds[n] for n in ("conv2", "conv3", "conv4", "fc1")] == [QuantConv2d] * 3 + [QuantLinear]
    assert [kinds[n] for n in ("pool1", "pool2", "flat", "fc2")] == [nn.Identity, nn.Identity, nn.Flatten, FloatLinear]
    activations = [m for m in net if isinstance(m, Activation)]
    assert [(m.steps.relu, m.steps.pool) for m in activations] == [(1, 2), (1, 2), (1, 1), (0, 3), (1, 1)]
    assert all(m.absorbed for m in activations)
    assert [net.get_submodule(n).steps for n in ("conv1", "conv2", "conv3", "conv4", "fc1")] == [
        m.steps for m in activations
    ]


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2, return_indices=True),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(3, stride=2),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d((2, 3)),
        nn.MaxPool2d(12),
        nn.MaxPool2d(1),
        nn.AvgPool2d(2),
    ],
    ids=str,
)
def test_other_pools_stay(pool):
    for relu in (True, False):
        net = converted(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *[nn.ReLU()] * relu, pool))
        assert net[-1] is pool
        assert net[0].steps == (Epilogue(relu=True) if relu else None)


def test_relus_elsewhere_stand_by_themselves():
    class Chain(nn.Sequential):
        pass

    net = converted(
        nn.Sequential(Chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), BasicBlock(4, 4, stride=1, norm="none"))
    )
    chain, block = net
    assert chain[0].steps is None
    assert (type(chain[1]), type(chain[2])) == (Activation, nn.MaxPool2d)
    assert not chain[1].absorbed
    assert (block.body[0].steps, block.body[2].steps) == (Epilogue(relu=True), None)
    assert block.body[1].absorbed
    assert not block.relu.absorbed


def test_a_relu_in_two_places_is_two_activations():
    relu = nn.ReLU()
    net = converted(
        nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.MaxPool2d(2), nn.Flatten(), relu)
    )
    assert [m.steps.pool for m in net if isinstance(m, Activation)] == [1, 2, 1]
    assert [m.absorbed for m in net if isinstance(m, Activation)] == [True, True, False]


def test_a_layer_in_two_places_keeps_its_own_output():
    shared = nn.Linear(6, 6)
    plain = nn.Sequential(shared, nn.ReLU(), shared)
    net, x = converted(copy.deepcopy(plain)), torch.randn(5, 6)
    assert net[0] is net[2]
    assert net[0].steps is None
    assert relative(net(x), plain(x)) <= 0.05
    assert (net(x) < 0).any()


def test_a_linear_layer_leaves_pooling_alone():
    plain = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.MaxPool2d(2))
    net, x = converted(copy.deepcopy(plain)), torch.randn(2, 3, 4, 6)
    assert net[0].steps is None
    assert relative(net(x), plain(x)) <= 0.05


def test_names_and_parameters_stay():
    for make in (plain_net, residual_net):
        net = make()
        names, parameters = list(net.state_dict()), list(net.parameters())
        modules = [name for name, _ in net.named_modules()]
        converted(net)
        assert [key for key in net.state_dict() if ".quantizer" not in key] == names
        assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
        assert [name for name, _ in net.named_modules() if ".quantizer" not in name] == modules


@pytest.mark.parametrize("make", [plain_net, residual_net])
@pytest.mark.parametrize("form", ["col2im", "im2col"])
def test_the_workload_is_the_float_nets(make, form):
    net = make()
    expected = trace(net, SHAPE, batch_size=4, grad_input_form=form)
    workload = trace(converted(net), SHAPE, batch_size=4, grad_input_form=form)
    assert {(gemm.bits_a, gemm.bits_b) for gemm in workload.gemms} == {(8, 8)}
    # But that what leaves a layer has been pooled.
    assert any(gemm.elements_out < gemm.m * gemm.n for gemm in workload.gemms) == (make is plain_net)
    same = [replace(gemm, bits_a=32, bits_b=32, elements_out=gemm.m * gemm.n) for gemm in workload.gemms]
    assert same == list(expected.gemms)


@pytest.mark.parametrize("make", [plain_net, residual_net])
def test_a_fused_net_is_copied_pickled_and_restored(make):
    net, x = converted(make(), skip="[first]" if make is plain_net else "[]"), torch.randn(4, *SHAPE)
    step(net, x)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    fresh = converted(make(), skip="[first]" if make is plain_net else "[]")
    fresh.load_state_dict(net.state_dict())
    before = state(net)
    expected = step(net, x)
    for twin in (copy.deepcopy(net), torch.load(buffer, weights_only=False), fresh):
        out, grads = step(twin, x)
        assert torch.equal(out, expected[0])
        assert all(torch.equal(a, b) for a, b in zip(grads, expected[1], strict=True))
    assert before.keys() == fresh.state_dict().keys()


@pytest.mark.parametrize(
    ("impl", "shape"),
    [
        ("torch", (5, 9)),
        ("torch", (2, 5, 9)),
        ("torch", (2, 3, 4, 9)),
        ("reference", (5, 9)),
        ("reference", (2, 5, 9)),
        ("reference", (2, 3, 4, 9)),
    ],
)
def test_a_linear_layer_takes_rows_of_any_rank(impl, shape):
    net = converted(nn.Sequential(nn.Linear(9, 17), nn.ReLU(), nn.Linear(17, 3)), impl=impl)
    x = torch.randn(shape)
    whole, rows = step(net, x), step(net, x.reshape(-1, 9))
    assert torch.equal(whole[0].reshape(-1, 3), rows[0])
    for a, b in zip(whole[1], rows[1], strict=True):
        assert torch.equal(a.reshape(b.shape), b)


def test_a_layer_that_stays_float_follows_autocast():
    net = converted(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)), skip="[first]")
    x = torch.randn(2, 3, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y = net[0](x)
    exact = nn.functional.conv2d(x.bfloat16(), net[0].weight.bfloat16(), net[0].bias.bfloat16())
    assert torch.equal(y, nn.functional.max_pool2d(exact.float().relu(), 2))
    y.sum().backward()
    assert net[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (1, 7), (7,)])
def test_a_linear_layer_that_stays_float_is_torchs(bias, shape):
    linear = nn.Linear(7, 4, bias=bias)
    ours, x = become(copy.deepcopy(linear), FloatLinear), torch.randn(shape)
    results = []
    for layer, dtype in ((ours, torch.float32), (copy.deepcopy(linear).double(), torch.float64)):
        at = x.to(dtype, copy=True).requires_grad_()
        y = layer(at)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape))
        results.append([t.detach().float() for t in (y, at.grad, *(p.grad for p in layer.parameters()))])
    assert len(results[0]) == 3 + bias
    for one, exact in zip(*results, strict=True):
        torch.testing.assert_close(one, exact)


def test_float_linear_layers_of_a_converted_net_are_swapped_and_keep_their_parameters():
    net = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    weight = net[2].weight
    fuse(net, impl="reference", norm_input="fp32")
    assert [type(layer) for layer in net[::2]] == [FloatLinear, FloatLinear]
    assert net[2].weight is weight
    weight.requires_grad_(False)
    net(torch.randn(2, 7)).sum().backward()
    assert weight.grad is None
    assert net[0].weight.grad is not None
