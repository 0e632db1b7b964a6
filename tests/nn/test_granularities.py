"""Scales that vary within an operand: those that can leave their GEMM's sum do, the others are refused."""

import copy
import functools
import re
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_input, conv2d_weight

from octo_exp.base.errors import UserError
from octo_exp.nn.convert import convert
from octo_exp.nn.layers import QuantLayer
from octo_exp.nn.three_gemms import ConvOp, LinearOp
from octo_exp.quant.clipping import ClipForm, Learned, Ratio
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import OWN, ROLES, Scheme, apply_override
from tests.nn.helpers import quantized, relative, scheme

# Layer, shape of its input.
LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 7, 6)),
    "strided groups": (nn.Conv2d(4, 6, 3, stride=2, groups=2), (5, 4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False), (5, 4, 7, 6)),
    "image": (nn.Conv2d(4, 6, (1, 3)), (4, 7, 6)),
    "linear": (nn.Linear(12, 7), (5, 12)),
    "sequence": (nn.Linear(12, 7), (5, 3, 12)),
    "vector": (nn.Linear(12, 7), (12,)),
}
shipped = functools.cache(scheme)
NAMES = ("tensor", "channel", "input_channel", "sample", "row")
TENSOR, CHANNEL, INPUT, SAMPLE, ROW = ({"granularity": name} for name in NAMES)
# What the scheme changes.
CARRIED = {
    "x and g by sample": {
        "x": SAMPLE,
        "x_weight": TENSOR,
        "g": SAMPLE,
        "g_weight": TENSOR,
    },
    "g by channel in grad_weight": {"g_weight": CHANNEL},
    "the same with a zero point of x": {"g_weight": CHANNEL, "x": {"symmetric": False}},
    "x by channel in grad_weight": {"x_weight": CHANNEL},
    "w by channel, and by input channel": {"w": CHANNEL, "w_input": INPUT},
    "all at once": {
        "x": SAMPLE,
        "x_weight": CHANNEL,
        "w": CHANNEL,
        "w_input": INPUT,
        "g": SAMPLE,
        "g_weight": CHANNEL,
    },
    "w's channels go into g by sample": {"w": CHANNEL, "g": SAMPLE, "g_weight": TENSOR},
    "x and g by row": {"x": ROW, "x_weight": TENSOR, "g": ROW, "g_weight": TENSOR},
    "a range of each sample is clipped": {"clip": Ratio(coefficient=0.9), "g": SAMPLE, "g_weight": TENSOR},
}


def changed(name: str, **changes) -> Scheme:
    """The shipped scheme `name` with other fields, as `quant.overrides` says them, and a form in the place of one."""
    forms = {key: changes.pop(key) for key in list(changes) if isinstance(changes[key], ClipForm)}
    return apply_override(replace(shipped(name), **forms), "*", changes)


def products(layer: QuantLayer, codes: dict) -> tuple[torch.Tensor, ...]:
    """(y, dx, dw) in float64, of the operands as their codes stand for them."""
    values = {key: q.dequantize().double() for key, q in codes.items()}
    x, w, g = values["x"], values["w"], values.get("g_scaled", values.get("g"))
    x_weight, w_input, g_weight = (values.get(own, values.get(own[0])) for own in ("x_weight", "w_input", "g_weight"))
    if "g_scaled" in values:
        # The weight's own scales are in it.
        w_input = codes["w"].values.double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    if isinstance(layer, nn.Linear):
        rows = [t.reshape(-1, t.shape[-1]) for t in (g_weight, x_weight)]
        return F.linear(x, w, bias), g @ w_input, rows[0].t() @ rows[1]
    geometry = (layer.op.geometry.stride, layer.op.geometry.padding, (1, 1), layer.groups)
    dw = conv2d_weight(x_weight, w.shape, g_weight, *geometry)
    return F.conv2d(x, w, bias, *geometry), conv2d_input(x.shape, w_input, g, *geometry), dw


def watched(whole, role: str, seen: set):
    """A GEMM that notes the types of its operands."""

    def run(self, a, b, *rest, **options):
        seen.add((role, a.dtype, b.dtype))
        return whole(self, a, b, *rest, **options)

    return run


@pytest.mark.parametrize(("case", "impl"), [*((case, "torch") for case in CARRIED), ("all at once", "reference")])
def test_each_product_is_that_of_its_own_codes(case, impl, monkeypatch):
    seen = set()
    for op in (ConvOp, LinearOp):
        for role in ROLES:
            monkeypatch.setattr(op, role, watched(getattr(op, role), role, seen))
    built = changed("int8", **CARRIED[case])
    for module, shape in LAYERS.values():
        if "row" in case and isinstance(module, nn.Conv2d):
            continue
        layer, codes = quantized(copy.deepcopy(module), built, impl=impl), {}
        layer.observer = lambda layer, operand, t, q, codes=codes: codes.update({operand: q})
        # Samples, channels and rows of very different sizes: another one's scale would be far off.
        sizes = torch.logspace(-2, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        x = (torch.randn(shape) * sizes).requires_grad_()
        y = layer(x)
        g = torch.randn_like(y) * torch.logspace(-2, 2, y.shape[0]).reshape(-1, *[1] * (y.dim() - 1))
        y.backward(g)
        for found, wanted in zip((y, x.grad, layer.weight.grad), products(layer, codes), strict=True):
            assert relative(found.reshape(wanted.shape), wanted) <= 1e-5, (str(module), shape)
        assert {key for key in CARRIED[case] if key in OWN} <= set(codes)
    assert seen == {(role, torch.int8, torch.int8) for role in ROLES}


def test_every_sample_and_channel_has_its_own_range():
    layer = quantized(nn.Conv2d(3, 5, 3), changed("int8", **CARRIED["all at once"]))
    scales = {}
    layer.observer = lambda layer, operand, t, q: scales.update({operand: (t, q.scale)})
    y = layer(torch.randn(4, 3, 6, 6, requires_grad=True))
    y.backward(torch.randn_like(y))
    kept = {"x": 0, "x_weight": 1, "w": 0, "w_input": 1, "g": 0, "g_weight": 1}
    for operand, dim in kept.items():
        t, scale = scales[operand]
        peaks = t.abs().amax([d for d in range(4) if d != dim], keepdim=True)
        assert torch.allclose(scale, peaks / 127), operand


@pytest.mark.parametrize("case", ["x and g by sample", "all at once"])
def test_an_epilogue_follows_scales_of_samples(case):
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    plain = copy.deepcopy(net)
    convert(net, changed("int8", **CARRIED[case]), impl="torch", clock=Clock())
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    y, reference = net(x), x.detach().clone().requires_grad_()
    g = torch.randn_like(y)
    y.backward(g)
    wanted = plain(reference)
    wanted.backward(g)
    # A window whose two largest values round to one passes the gradient elsewhere.
    assert relative(y, wanted) <= 0.02
    assert relative(net[0].weight.grad, plain[0].weight.grad) <= 0.1
    assert relative(x.grad, reference.grad) <= 0.2


def test_a_prediction_with_a_scale_a_sample_needs_no_stored_range_and_no_batch():
    layer = quantized(nn.Conv2d(3, 5, 3), changed("int8", x=SAMPLE, x_weight=TENSOR)).eval()
    x = torch.randn(4, 3, 6, 6) * torch.tensor([0.1, 1.0, 10.0, 100.0]).reshape(4, 1, 1, 1)
    whole = layer(x)
    assert all(torch.equal(whole[i], layer(x[i : i + 1])[0]) for i in range(4))
    assert not any("quantizer_x." in key for key in layer.state_dict())


def test_what_a_role_quantises_by_itself_draws_its_own_noise_and_keeps_its_own_range():
    changes = {"g": {"rounding": "stochastic", "range": "hindsight"}, "g_weight": {"bits": 4}}
    layer = quantized(nn.Linear(64, 32), changed("int8", **changes))
    codes = {}
    layer.observer = lambda layer, operand, t, q: codes.update({operand: q.values})
    for _ in range(2):
        layer(torch.randn(16, 64, requires_grad=True)).square().sum().backward()
    assert int(layer.quantizer_g.count) == int(layer.quantizer_g_weight.count) == 2
    assert codes["g"].abs().max() > 7 >= codes["g_weight"].abs().max()
    assert layer.operand_bits == {"output": (8, 8), "grad_input": (8, 8), "grad_weight": (4, 8)}


def test_a_role_that_takes_no_codes_quantises_nothing_by_itself():
    layer = quantized(nn.Linear(8, 4), changed("int8", grad_weight="bf16", g_weight=TENSOR, x_weight=TENSOR))
    assert layer.quantizer_g_weight is layer.quantizer_x_weight is None
    layer = quantized(nn.Linear(8, 4), changed("int8", x_weight=TENSOR))
    layer.weight.requires_grad_(False)
    seen = []
    layer.observer = lambda layer, operand, t, q: seen.append(operand)
    layer(torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert seen == ["x", "w", "g"]


def test_overrides_change_what_a_role_quantises_by_itself():
    overrides = "{a: {bits: 4}, b: {g_weight: {granularity: channel, bits: 6}}, c: {g_weight: null}}"
    built = scheme("int8", g_weight="{rounding:stochastic}", overrides=overrides)
    layers = [built.for_layer(name) for name in "abc"]
    assert [layer.operand("g_weight").bits for layer in layers[:2]] == [4, 6]
    assert [layer.operand("g_weight").rounding.name for layer in layers[:2]] == ["stochastic"] * 2
    assert layers[1].operand("g_weight").granularity.name == "channel"
    assert layers[2].key_of("grad_weight", "g") == "g"


SAMPLES = "grad_weight sums over samples and positions, and a scale a {} cannot leave its sum"
REFUSED = {
    "x by sample": ({"x": SAMPLE}, f"{SAMPLES.format('sample')}; quant.x_weight={{granularity:tensor}} gives"),
    "g by sample": ({"g": SAMPLE}, f"{SAMPLES.format('sample')}; quant.g_weight={{granularity:tensor}} gives"),
    "g by row": ({"g": ROW}, SAMPLES.format("row")),
    "its own g by sample": (
        {"g_weight": SAMPLE},
        f"quant.g_weight.granularity=sample: {SAMPLES.format('sample')}",
    ),
    "x by channel": (
        {"x": CHANNEL},
        "output sums over input channels and taps, and a scale a channel cannot leave its sum; choose tensor here, and "
        "quant.x_weight={granularity:channel} for grad_weight",
    ),
    "g by channel": (
        {"g": CHANNEL},
        "grad_input sums over output channels, and a scale a channel cannot leave its sum; choose tensor here, and "
        "quant.g_weight={granularity:channel} for grad_weight",
    ),
    "w by input channel": (
        {"w": INPUT},
        "output sums over input channels and taps, and a scale an input channel cannot leave its sum; choose tensor "
        "here, and quant.w_input={granularity:input_channel} for grad_input",
    ),
    "w by sample": ({"w": SAMPLE}, "quant.w.granularity=sample: w has none; choose tensor"),
    "g by input channel": (
        {"g_weight": INPUT},
        "granularity=input_channel: g has none",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_scale_that_its_gemm_sums_over_is_refused_with_the_reason(case):
    changes, message = REFUSED[case]
    with pytest.raises(UserError, match=re.escape(message)):
        changed("int8", **changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lac", {"x": SAMPLE}, "a zero point a sample has no integer GEMM"),
        ("int8", {"x": {**SAMPLE, "range": "hindsight"}}, "the moving average is one range a tensor"),
        (
            "prc",
            {"clip": Learned(rho_init=1.0, learning_rate=0.1), "g_weight": CHANNEL},
            "granularity=channel: Learned clips a whole",
        ),
        ("lsq", {"w": INPUT}, "a learned step is one a tensor, or one a channel"),
        ("lsq", {"x_weight": TENSOR}, "quant.x_weight: Lsq quantises x and w only"),
        ("int8", {"g_weight": {"rounds": "nearest"}}, "quant.g_weight has no field 'rounds'; known: bits"),
        ("lac", {"output": "fake", "w": INPUT, "grad_input": "fake"}, "zero_point sums codes of w"),
    ],
)
def test_forms_that_do_not_go_together_are_refused(name, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        changed(name, **changes)


def test_a_row_of_a_convolution_is_refused_before_a_layer_is_changed():
    net = nn.Sequential(OrderedDict(first=nn.Linear(6, 6), conv=nn.Conv2d(3, 4, 3)))
    built = changed("int8", g=ROW, g_weight=TENSOR)
    with pytest.raises(UserError, match=r"layer 'conv': quant\.g\.granularity=row: a convolution"):
        convert(net, built, impl="torch", clock=Clock())
    assert [type(layer) for layer in net] == [nn.Linear, nn.Conv2d]
    by_sample = replace(built, overrides={"conv": {"g": SAMPLE}})
    assert convert(net, by_sample, impl="torch", clock=Clock()).quantized == ("first", "conv")


def test_what_floats_multiply_may_have_any_scale():
    layer = quantized(nn.Conv2d(3, 4, 3), changed("int8", g=SAMPLE, grad_weight="fake"))
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert layer.weight.grad.isfinite().all()
