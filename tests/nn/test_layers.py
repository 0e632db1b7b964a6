"""Acceptance checks 4, 7, 8, 9 and 11, and the three roles at the kernel boundary."""

import copy
from types import NoneType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octo_exp.kernels import int8, ops
from octo_exp.models.simplecnn import SimpleCNN
from octo_exp.nn.convert import convert
from octo_exp.quant.quantizer import OperandSpec
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import OPERANDS
from tests.nn.helpers import CONVERTING, product_budget, quantized, relative, scheme, state

CASES = [
    nn.Conv2d(3, 6, 3, padding=1),
    nn.Conv2d(3, 6, 3, stride=2, padding=0),
    nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
    nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
    nn.Conv2d(3, 6, 5, padding="same"),
    nn.Conv2d(3, 1, 3, padding=1),
    nn.Linear(12, 7),
]


def inputs(module: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (5, module.in_channels, 9, 9) if isinstance(module, nn.Conv2d) else (5, module.in_features)
    # ReLU-like: one-sided, so an asymmetric quantiser has a zero point of -128.
    return torch.relu(torch.randn(shape, generator=generator)) + 0.1


def dequantized_output(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The float layer on the operands' dequantised values, in float64."""
    xq = layer.quantizer_x.eval()(x).dequantize().double()
    wq = layer.quantizer_w(layer.weight.detach()).dequantize().double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    if isinstance(layer, nn.Linear):
        return F.linear(xq, wq, bias)
    geometry = layer.op.geometry
    return F.conv2d(xq, wq, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("name", ["int8", "lac", "octo", "fake_qat"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("module", CASES, ids=str)
def test_output_is_the_dequantized_product(impl, name, granularity, module):
    layer = quantized(copy.deepcopy(module), scheme(name, w__granularity=granularity), impl=impl)
    x = inputs(module)
    layer(x)
    layer.eval()
    expected = dequantized_output(layer, x)
    assert relative(layer(x), expected) <= 1e-5


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(
    ("name", "changes", "budget"),
    [
        ("int8", {}, 0.02),
        ("lac", {}, 0.02),
        ("prc", {}, 0.02),
        ("octo", {}, 0.02),
        # Cut at 2.576 sigma a normal gradient loses 0.043 of its norm, give or take a fifth.
        ("prc", {"clip": "gaussian"}, 0.06),
        ("prc", {"clip": "learned"}, 0.02),
        ("int8", {"g__rounding": "stochastic"}, 0.02),
    ],
)
def test_backward_fidelity_on_gaussian_tensors(padding, stride, granularity, name, changes, budget):
    module = nn.Conv2d(16, 32, 3, padding=padding, stride=stride)
    x = torch.randn(8, 16, 12, 12, requires_grad=True)
    layer = quantized(copy.deepcopy(module), scheme(name, w__granularity=granularity, **changes))
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    reference = x.detach().clone().requires_grad_()
    module(reference).backward(g)
    assert relative(layer.weight.grad, module.weight.grad) <= budget
    assert relative(x.grad, reference.grad) <= budget
    # The bias sees the gradient itself; the sum has N*OH*OW float32 terms.
    assert torch.allclose(layer.bias.grad, module.bias.grad, rtol=1e-4, atol=1e-4)


# What a form without a range does is its own test's.
RANGED = [n for n in CONVERTING if all(isinstance(scheme(n).operand(o), OperandSpec | NoneType) for o in OPERANDS)]


@pytest.mark.parametrize("name", RANGED)
@pytest.mark.parametrize("module", CASES, ids=str)
def test_every_layer_trains_under_every_scheme(name, module):
    layer = quantized(copy.deepcopy(module), scheme(name))
    operands = {}
    layer.observer = lambda layer, operand, t, q: operands.update({operand: t.clone()})
    x = inputs(module).requires_grad_()
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    float_layer, reference = copy.deepcopy(module), inputs(module).requires_grad_()
    float_layer(reference).backward(g)
    assert relative(x.grad, reference.grad) <= product_budget(layer, "grad_input", operands)
    assert relative(layer.weight.grad, float_layer.weight.grad) <= product_budget(layer, "grad_weight", operands)


@pytest.mark.parametrize("name", ["int8", "octo"])
def test_every_int8_role_reaches_the_kernels_as_int8(name, monkeypatch):
    # Also on a processor where an exact product of another type stands in.
    monkeypatch.setattr(int8, "int_mm_pays", lambda device_type: True)
    seen = {}
    cpu = type(ops.backend("torch", "cpu"))
    convolutions = ("conv2d_scaled", "conv2d_grad_input_scaled", "conv2d_grad_weight_scaled")
    roles = (*convolutions, "matmul_scaled", "matmul_grad_weight")
    for op in roles:
        original = getattr(cpu, op)

        def watch(self, *args, _op=op, _original=original, **kwargs):
            seen.setdefault(_op, []).append((args[0].dtype, args[1].dtype))
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(cpu, op, watch)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 5))
    convert(net, scheme(name), impl="torch", clock=Clock())
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    with torch.autograd.profiler.profile() as profile:
        net(x).sum().backward()
    # A product of the linear layer is its output, the other its grad_input.
    assert {op: len(calls) for op, calls in seen.items()} == {op: 1 + (op == "matmul_scaled") for op in roles}
    assert {dtypes for calls in seen.values() for dtypes in calls} == {(torch.int8, torch.int8)}
    events = {event.name for event in profile.function_events}
    assert "aten::_int_mm" in events
    assert not {"aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm"} & events


@pytest.mark.parametrize("role", ["output", "grad_input", "grad_weight"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fake"])
@pytest.mark.parametrize("module", [nn.Conv2d(3, 6, 3, padding=1), nn.Linear(12, 7)], ids=str)
def test_each_role_has_its_own_precision(role, precision, module):
    layer = quantized(copy.deepcopy(module), scheme("int8", **{role: precision}))
    x = inputs(module).requires_grad_()
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    exact, reference = copy.deepcopy(module), inputs(module).requires_grad_()
    out = exact(reference)
    out.backward(g)
    errors = {
        "output": relative(y, out),
        "grad_input": relative(x.grad, reference.grad),
        "grad_weight": relative(layer.weight.grad, exact.weight.grad),
    }
    # The role itself: exact in fp32; 2^-8 a rounding in bf16; like int8 when faked. The others stay int8.
    assert errors[role] <= {"fp32": 1e-6, "bf16": 2**-7, "fake": 0.03}[precision]
    if precision == "fp32":
        assert min(value for key, value in errors.items() if key != role) > 1e-4


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", ["int8", "lac", "octo"])
def test_evaluation_does_not_depend_on_the_batch(name, norm):
    net = SimpleCNN(in_channels=1, num_classes=10, image_size=28, width=6, hidden=16, norm=norm)
    convert(net, scheme(name), impl="torch", clock=Clock())
    for _ in range(3):
        net(torch.rand(20, 1, 28, 28))
    net.eval()
    before = state(net)
    images = torch.rand(57, 1, 28, 28)
    with torch.no_grad():
        codes = {n: net(images[:n]).argmax(1) for n in (1, 7, 50, 57)}
        permutation = torch.randperm(57)
        permuted = net(images[permutation]).argmax(1)
        logits = net(images)
        alone = torch.cat([net(image[None]) for image in images])
    assert all(torch.equal(codes[n], codes[57][:n]) for n in codes)
    assert torch.equal(permuted, codes[57][permutation])
    # Equal integers in, equal integers out: only the float first summation order of the norm may differ.
    assert relative(alone, logits) <= 1e-5
    assert all(torch.equal(value, before[key]) for key, value in state(net).items())


def test_integers_of_a_sample_are_the_same_in_any_batch():
    geometry = ops.ConvGeometry(padding=(1, 1))
    x = torch.randint(-128, 128, (50, 3, 8, 8), dtype=torch.int8)
    w = torch.randint(-127, 128, (4, 3, 3, 3), dtype=torch.int8)
    whole = ops.backend("torch", "cpu").int8_conv2d(x, w, geometry, pad_value=-9)
    for part in (slice(0, 1), slice(0, 7), slice(43, 50)):
        assert torch.equal(ops.backend("torch", "cpu").int8_conv2d(x[part], w, geometry, pad_value=-9), whole[part])


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_implementations_agree_bit_for_bit_through_a_layer(impl):
    if impl == "triton":
        pytest.importorskip("triton")
    module = nn.Conv2d(3, 5, 3, padding=1, stride=2)
    results = []
    for name in ("reference", impl):
        layer = quantized(copy.deepcopy(module), scheme("octo"), impl=name)
        x = inputs(module).requires_grad_()
        y = layer(x)
        y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
        results.append((y.detach(), x.grad, layer.weight.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_autocast_does_not_reach_the_roles():
    layer = quantized(nn.Linear(12, 7), scheme("fake_qat"))
    x = inputs(layer)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected)
