"""Acceptance checks 4, 7, 8, 9 and 11, and the three roles at the kernel boundary."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octo_exp.errors import UserError
from octo_exp.kernels import api
from octo_exp.models.simplecnn import SimpleCNN
from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import CONVERTING, quantized, relative, scheme, state

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


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_zero_point_identity_needs_its_cross_term(padding, stride):
    module = nn.Conv2d(3, 6, 3, padding=padding, stride=stride)
    x = inputs(module)
    exact = quantized(copy.deepcopy(module), scheme("lac"))
    exact(x)
    exact.eval()
    assert relative(exact(x), dequantized_output(exact, x)) <= 1e-5
    with torch.no_grad():
        exact.compensator.theta.fill_(-1.0)
    assert relative(exact(x), dequantized_output(exact, x)) > 0.1


@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_theta_gives_back_its_share_of_the_term(granularity):
    built = scheme("lac", compensation__granularity=granularity)
    layer = quantized(nn.Conv2d(3, 4, 3, padding=1), built, input_shape=(3, 9, 9))
    x = inputs(layer)
    exact = layer(x).detach()
    with torch.no_grad():
        layer.compensator.theta.fill_(0.25)
    y = layer(x)
    xq, wq = layer.quantizer_x.eval()(x), layer.quantizer_w(layer.weight.detach())
    term = xq.scale * xq.zero_point * wq.dequantize().flatten(1).sum(1)
    assert relative(y, exact - 0.25 * term.reshape(-1, 1, 1)) <= 1e-5
    g = torch.randn_like(y)
    y.backward(g)
    expected = -(g * term.reshape(-1, 1, 1)).sum(0)
    expected = expected.sum((1, 2)) if granularity == "channel" else expected
    assert relative(layer.compensator.theta.grad, expected) <= 1e-5


@pytest.mark.parametrize("theta", [-1.0, 0.0, 0.5])
def test_weight_gradient_is_that_of_the_truncated_forward(theta):
    # y = sum (x^ - theta*s_x*z_x) w^, so dw = sum g (x^ - theta*s_x*z_x): the padding holds real 0 in x^.
    built = scheme("lac", compensation__theta_init=theta, grad_weight="fake", grad_input="fake", g="null")
    layer = quantized(nn.Conv2d(3, 4, 3, padding=1), built)
    x = inputs(layer)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    xq = layer.quantizer_x.eval()(x)
    padded = F.pad(xq.dequantize(), (1, 1, 1, 1)) - theta * xq.scale * xq.zero_point
    expected = torch.nn.grad.conv2d_weight(padded.double(), layer.weight.shape, g.double())
    assert relative(layer.weight.grad, expected) <= 1e-5


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
        ("prc", {"clip__form": "gaussian"}, 0.05),
        ("prc", {"clip__form": "learned"}, 0.02),
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


@pytest.mark.parametrize("name", CONVERTING)
@pytest.mark.parametrize("module", CASES, ids=str)
def test_every_layer_trains_under_every_scheme(name, module):
    layer = quantized(copy.deepcopy(module), scheme(name))
    x = inputs(module).requires_grad_()
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    float_layer, reference = copy.deepcopy(module), inputs(module).requires_grad_()
    float_layer(reference).backward(g)
    # Small K on one-sided data: looser than check 11, tight enough that a wrong role, scale or zero point fails.
    assert relative(x.grad, reference.grad) <= 0.05
    assert relative(layer.weight.grad, float_layer.weight.grad) <= 0.05


@pytest.mark.parametrize("name", ["int8", "octo"])
def test_every_int8_role_reaches_the_kernels_as_int8(name, monkeypatch):
    seen = {}
    for op in ("int8_conv2d", "int8_conv2d_grad_input", "int8_conv2d_grad_weight", "int8_matmul"):
        original = getattr(api, op)

        def watch(*args, _op=op, _original=original, **kwargs):
            out = _original(*args, **kwargs)
            seen.setdefault(_op, []).append((args[0].dtype, args[1].dtype, out.dtype))
            return out

        monkeypatch.setattr(api, op, watch)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 5))
    convert(net, scheme(name), impl="torch", clock=Clock())
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    with torch.autograd.profiler.profile() as profile:
        net(x).sum().backward()
    assert set(seen) == {"int8_conv2d", "int8_conv2d_grad_input", "int8_conv2d_grad_weight", "int8_matmul"}
    for calls in seen.values():
        assert all(call[:2] == (torch.int8, torch.int8) and not call[2].is_floating_point for call in calls)
    float_gemms = {"aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm"}
    assert not float_gemms & {event.name for event in profile.function_events}


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


def test_saved_for_backward_is_int8_and_scales():
    layer = quantized(nn.Conv2d(8, 8, 3, padding=1), scheme("octo", w__granularity="channel"))
    saved = []
    x = inputs(layer).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    big = [t for t in saved if t.numel() > 16]
    assert big
    assert all(t.dtype == torch.int8 for t in big)
    node = y.grad_fn
    assert not [v for v in vars(node).values() if isinstance(v, torch.Tensor)]


def test_a_bf16_role_saves_bf16():
    layer = quantized(nn.Conv2d(8, 8, 3), scheme("int8", grad_weight="bf16"))
    saved, x = [], inputs(layer)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    assert [t.dtype for t in saved if t.shape == x.shape] == [torch.bfloat16]


def test_frozen_and_first_layers_save_and_compute_nothing_for_the_missing_role(monkeypatch):
    calls = []
    monkeypatch.setattr(api, "int8_conv2d_grad_input", lambda *a, **k: calls.append("grad_input"))
    layer = quantized(nn.Conv2d(3, 4, 3), scheme("int8"))
    layer(torch.randn(2, 3, 8, 8)).sum().backward()
    assert calls == []
    monkeypatch.undo()
    monkeypatch.setattr(api, "int8_conv2d_grad_weight", lambda *a, **k: calls.append("grad_weight"))
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    layer(x).sum().backward()
    assert calls == []
    assert x.grad is not None


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
    geometry = api.ConvGeometry(padding=(1, 1))
    x = torch.randint(-128, 128, (50, 3, 8, 8), dtype=torch.int8)
    w = torch.randint(-127, 128, (4, 3, 3, 3), dtype=torch.int8)
    whole = api.int8_conv2d(x, w, geometry, pad_value=-9, impl="torch")
    for part in (slice(0, 1), slice(0, 7), slice(43, 50)):
        assert torch.equal(api.int8_conv2d(x[part], w, geometry, pad_value=-9, impl="torch"), whole[part])


def test_compensation_alone_repairs_the_dropped_term():
    module = nn.Conv2d(8, 12, 3, padding=1)
    layer = quantized(copy.deepcopy(module), scheme("lac", compensation__theta_init=-1.0))
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)

    def batch() -> torch.Tensor:
        return torch.relu(torch.randn(16, 8, 10, 10, generator=generator) + 0.2)

    held_out = [batch() for _ in range(4)]

    def errors() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([layer(x) - module(x) for x in held_out])

    before = errors()
    optimizer = torch.optim.Adam(layer.compensator.parameters(), lr=0.02)
    for _ in range(100):
        x = batch()
        optimizer.zero_grad()
        F.mse_loss(layer(x), module(x).detach()).backward()
        optimizer.step()
    after = errors()
    assert after.square().mean().sqrt() <= 0.9 * before.square().mean().sqrt()
    compensation = (after - before).mean((0, 1, 3, 4))
    cosine = F.cosine_similarity(compensation, -before.mean((0, 1, 3, 4)), dim=0)
    assert cosine > 0.5


def test_the_oracle_returns_the_float_product():
    module = nn.Conv2d(3, 6, 3, padding=1)
    layer = quantized(copy.deepcopy(module), scheme("octo_ec", bits=4))
    x = inputs(module)
    assert relative(layer(x), module(x)) <= 1e-5
    plain = quantized(copy.deepcopy(module), scheme("octo", bits=4))
    assert relative(plain(x), module(x)) > 0.02


def test_hindsight_gradient_passes_inside_the_range_only():
    layer = quantized(nn.Linear(4, 3), scheme("int8", x__range="hindsight", x__momentum=0.0))
    layer(torch.tensor([[-1.0, 1.0, 0.5, 0.0]]))
    x = torch.tensor([[-5.0, 0.9, 5.0, 0.1]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad[0, 0] == 0
    assert x.grad[0, 2] == 0
    assert (x.grad[0, [1, 3]] != 0).all()


def test_clipping_narrows_the_gradients_alone():
    layer = quantized(nn.Linear(8, 4), scheme("prc", clip__coefficient=0.5, w__granularity="channel"))
    shares = {}
    layer.observer = lambda layer, operand, t, q: shares.update({operand: float(q.scale.max() * 127 / t.abs().max())})
    x = torch.randn(3, 8, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert shares == pytest.approx({"x": 1.0, "w": 1.0, "g": 0.5, "g_scaled": 0.5})


def test_the_gradient_of_a_float_product_passes_everywhere():
    layer = quantized(nn.Linear(4, 3), scheme("int8", output="fp32", x__range="hindsight", x__momentum=0.0))
    layer(torch.tensor([[-1.0, 1.0, 0.5, 0.0]]))
    x = torch.tensor([[-5.0, 0.9, 5.0, 0.1]], requires_grad=True)
    layer(x).sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize(("granularity", "operands"), [("tensor", ["g"]), ("channel", ["g", "g_scaled"])])
def test_the_gradient_is_quantized_once_where_both_roles_can_share_it(granularity, operands):
    layer = quantized(nn.Linear(8, 4), scheme("int8", g__range="hindsight", w__granularity=granularity))
    seen = []
    layer.observer = lambda layer, operand, t, q: seen.append(operand)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert seen == ["x", "w", *operands]
    # Each has its own state, which moves once a step.
    assert all(int(layer.quantizer_of(operand).count) == 1 for operand in operands)


def test_the_two_quantized_gradients_draw_their_own_noise():
    layer = quantized(nn.Linear(64, 32), scheme("int8", g__rounding="stochastic", w__granularity="channel"))
    g = torch.randn(16, 32)
    assert not torch.equal(layer.quantizer_g(g).values, layer.quantizer_g_scaled(g).values)


def test_noise_is_keyed_by_step_and_layer():
    clock = Clock(seed=1)
    layer = quantized(nn.Linear(64, 32), scheme("int8", g__rounding="stochastic"), clock=clock)
    x, g = torch.randn(16, 64), torch.randn(16, 32)

    def gradient() -> torch.Tensor:
        layer.zero_grad()
        layer(x).backward(g)
        return layer.weight.grad.clone()

    first = gradient()
    assert torch.equal(gradient(), first)
    clock.step = 1
    assert not torch.equal(gradient(), first)


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


def test_unsupported_padding_is_refused():
    with pytest.raises(UserError, match="padding_mode"):
        quantized(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), scheme("int8"))
    with pytest.raises(UserError, match="even kernel"):
        quantized(nn.Conv2d(3, 3, 2, padding="same"), scheme("int8"))
