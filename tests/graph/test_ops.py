"""Convolutions, additions, pooling and gradient codes against brute force: forward and every gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.train import chains, cpu_forward, cpu_layout, float_order, integer
from octo_exp.graph.train.constants import ConvConstants, pack, unpack
from octo_exp.graph.train.trained import EVERYTHING, Update
from octo_exp.kernels.ops import ConvGeometry
from tests.graph.helpers import GOLDEN, MODES, Case, brute_force, conv_case


def run(case: Case, mode: str, update: Update = EVERYTHING, g: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """(y, grad_x, grad_w, grad_b)."""
    x, w, b = (t.clone().requires_grad_() for t in (case.x, case.w, case.b))
    step = chains.Conv(weight=w, bias=b, constants=case.constants, update=update)
    y = chains.run_chain(x, [step], mode=mode)
    y.backward(case.g if g is None else g)
    return y.detach(), x.grad, w.grad, b.grad


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind, kernel, stride = (
        draw(st.sampled_from(["plain", "grouped", "depthwise"])),
        draw(st.sampled_from([1, 2, 3, 5, 7, (3, 5), (7, 1)])),
        draw(st.integers(1, 3)),
    )
    groups = {"plain": 1, "grouped": 2, "depthwise": draw(st.sampled_from([2, 7, 8, 16, 17]))}[kind]
    ins = groups * (1 if kind == "depthwise" else draw(st.integers(1, 9)))
    outs = groups * (1 if kind == "depthwise" else draw(st.integers(1, 9)))
    smallest = 2 if kernel == 2 else 1
    size = (draw(st.integers(smallest, 9)), draw(st.integers(smallest, 9)))
    shape = {"channels": (ins, outs), "groups": groups, "kernel": kernel, "stride": stride, "size": size}
    return conv_case(draw(st.integers(0, 2**16)), n=draw(st.integers(1, 3)), **shape)


@pytest.mark.parametrize("mode", MODES)
@given(case=cases())
@settings(max_examples=60)
def test_a_convolution_and_its_gradients_equal_brute_force(mode, case):
    expected = brute_force(case)
    for name, got in zip(("y", "x", "w", "b"), run(case, mode), strict=True):
        want = torch.from_numpy(getattr(expected, name)).float()
        assert torch.equal(got, want), f"{name}: {(got - want).abs().max()}"


# 1, 7, 16, 63 and 65 channels; images beyond one tile, one block and one chunk.
SIZES = [
    {"channels": (1, 1), "groups": 1, "kernel": 1, "stride": 1, "size": (1, 1)},
    {"channels": (65, 63), "groups": 1, "kernel": 1, "stride": 1, "size": (7, 16)},
    {"channels": (63, 63), "groups": 63, "kernel": 3, "stride": 2, "size": (16, 7)},
    {"channels": (16, 16), "groups": 16, "kernel": 7, "stride": 1, "size": (9, 65)},
    {"channels": (3, 16), "groups": 1, "kernel": 3, "stride": 2, "size": (63, 65)},
]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"{s['channels']}k{s['kernel']}")
def test_both_arithmetics_give_the_same_bits_and_gradients_within_rounding(sizes, monkeypatch):
    monkeypatch.setattr(cpu_layout, "CHUNK_BYTES", 3000)
    case = conv_case(5, n=7, **sizes)
    # Any scale and gradient: sums are rounded now, so there is a budget for each.
    scale = torch.rand(case.b.shape) * 0.01
    constants = replace(case.constants, scale=scale, x_zero=-128, y_zero=3)
    rounded = Case(x=case.x, w=case.w, b=case.b, g=torch.randn_like(case.g), constants=constants)
    (y, *want), (z, *got) = (run(rounded, mode) for mode in MODES)
    assert torch.equal(y, z)
    absolute = Case(x=case.x.abs() + 256, w=case.w.abs(), b=case.b, g=rounded.g.abs(), constants=constants)
    # A sum of n rounded terms errs by less than n half units of the sum of their sizes; masks only shrink that.
    sizes_of_sums = bounds(absolute)
    for a, b, bound in zip(want, got, sizes_of_sums, strict=True):
        assert ((a - b).abs() <= 2 * bound).all()


def bounds(case: Case) -> tuple[Tensor, ...]:
    """n * 2^-24 * sum of sizes, for grad_x, grad_w, grad_b: nothing is clamped."""
    c = case.constants.geometry
    h = (case.g * case.constants.scale.reshape(-1, 1, 1)).double()
    steps = (c.stride, c.padding, c.dilation, c.groups)
    dx = torch.nn.grad.conv2d_input(case.x.shape, case.w.double(), h, *steps)
    dw = torch.nn.grad.conv2d_weight(case.x.double(), case.w.shape, h, *steps)
    pixels = h.numel() / h.shape[1]
    return dx * case.w.numel() * 2.0**-24, dw * (pixels + 4) * 2.0**-24, h.sum((0, 2, 3)) * (pixels + 4) * 2.0**-24


@pytest.mark.parametrize("mode", MODES)
def test_the_released_operation_is_reproduced(mode):
    z = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "op_conv_ste.npz").items()}
    geometry = ConvGeometry(stride=(int(z["stride"]),) * 2, padding=(int(z["padding"]),) * 2)
    zeros = {"x_zero": int(z["zero_x"]), "y_zero": int(z["zero_y"])}
    constants = ConvConstants(geometry=geometry, in_channels=4, scale=z["effective_scale"], **zeros)
    case = Case(x=z["x"], w=z["weight"], b=z["bias"], g=z["grad_out"], constants=constants)
    y, *gradients = run(case, mode)
    assert torch.equal(y, z["y"])
    for got, name in zip(gradients, ("grad_x", "grad_w", "grad_b"), strict=True):
        assert (got - z[name]).abs().max() <= 1e-6 * z[name].abs().max(), name
    clamped = (y == -128) | (y == 127)
    assert clamped.float().mean() > 0.4
    # What is clamped for certain contributes nothing: the gradients stay when its gradient grows.
    t = torch.nn.functional.conv2d(z["x"] - z["zero_x"], z["weight"], z["bias"], padding=1)
    outside = (t * z["effective_scale"].reshape(-1, 1, 1) + z["zero_y"] - 0.5).abs() > 129
    _, *others = run(case, mode, g=torch.where(outside, z["grad_out"] * 100 + 7, z["grad_out"]))
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("groups", "channels"), [(1, (9, 5)), (9, (9, 9))])
@pytest.mark.parametrize("kernel", [1, 3])
def test_kept_channels_get_their_share_and_no_more(mode, groups, channels, kernel):
    case = conv_case(3, n=2, channels=channels, groups=groups, kernel=kernel, stride=1, size=(7, 5))
    kept = torch.tensor([6, 0, 3])
    _, x, w, b = run(case, mode, Update(kept=kept))
    _, full_x, full_w, full_b = run(case, mode)
    assert torch.equal(x, full_x)
    assert torch.equal(b, full_b)
    mask = torch.zeros(9).index_fill_(0, kept, 1).reshape((-1, 1, 1, 1) if groups > 1 else (1, -1, 1, 1))
    assert torch.equal(w, full_w * mask)
    assert full_w.count_nonzero() > w.count_nonzero() > 0


@pytest.mark.parametrize("mode", MODES)
def test_no_kept_channel_is_a_gradient_of_zeros(mode):
    case = conv_case(3, n=2, channels=(8, 8), groups=8, kernel=3, stride=1, size=(5, 5))
    _, _, w, b = run(case, mode, Update(kept=torch.tensor([], dtype=torch.int64)))
    assert torch.equal(w, torch.zeros_like(w))
    assert b.count_nonzero() > 0


def test_kept_channels_of_a_grouped_convolution_are_refused():
    case = conv_case(3, n=1, channels=(4, 4), groups=2, kernel=1, stride=1, size=(2, 2))
    with pytest.raises(UserError, match="one group or a depthwise one"):
        run(case, "float_order", Update(kept=torch.tensor([0])))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("train_weight", "train_bias"), [(False, True), (True, False), (False, False)])
def test_only_what_is_trained_gets_a_gradient(mode, train_weight, train_bias):
    case = conv_case(4, n=2, channels=(8, 8), groups=1, kernel=3, stride=1, size=(6, 6))
    _, x, w, b = run(case, mode, Update(train_weight=train_weight, train_bias=train_bias))
    _, full_x, full_w, full_b = run(case, mode)
    assert torch.equal(x, full_x)
    assert torch.equal(w, full_w) if train_weight else w is None
    assert torch.equal(b, full_b) if train_bias else b is None


def test_the_plain_integer_form_is_the_compiled_one():
    """What runs on other devices, on this one."""
    for groups, kernel, stride in ((1, 1, 1), (8, 3, 2), (2, 3, 1), (1, 5, 2)):
        case = conv_case(7, n=3, channels=(8, 8), groups=groups, kernel=kernel, stride=stride, size=(7, 9))
        codes = integer.enter(case.x)
        assert torch.equal(codes, cpu_forward.enter(case.x))
        y, bits = integer.forward(codes, case.w, case.b, case.constants, want_bits=True)
        z, _ = cpu_forward.forward(codes, case.w, case.b, case.constants, want_bits=True)
        assert torch.equal(y, z)
        assert torch.equal(integer.leave(y).double(), torch.from_numpy(brute_force(case).y))
        assert bits.numel() == (y.numel() + 7) // 8


@pytest.mark.parametrize("groups", [1, 8])
def test_weights_beyond_int8_are_still_exact(groups):
    case = conv_case(9, n=2, channels=(8, 8), groups=groups, kernel=3, stride=1, size=(6, 6))
    wide = Case(x=case.x, w=case.w * 3, b=case.b, g=case.g, constants=case.constants)
    assert wide.w.abs().max() > 300
    for a, b in zip(run(wide, "float_order"), run(wide, "integer"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_diverged_weights_are_refused(value):
    case = conv_case(9, n=1, channels=(2, 2), groups=1, kernel=1, stride=1, size=(2, 2))
    case.w[0, 0] = value
    with pytest.raises(UserError, match="diverged"):
        run(case, "integer")


@pytest.mark.parametrize("mode", MODES)
def test_masters_are_rounded_and_biases_are_not(mode):
    case = conv_case(1, n=1, channels=(4, 4), groups=1, kernel=1, stride=1, size=(5, 5))
    off = Case(x=case.x, w=case.w + 0.4, b=case.b + 0.4, g=case.g, constants=case.constants)
    want = brute_force(Case(x=case.x, w=case.w, b=off.b, g=case.g, constants=case.constants))
    y, x, *_ = run(off, mode)
    assert torch.equal(y, torch.from_numpy(want.y).float())
    assert torch.equal(x, torch.from_numpy(want.x).float())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 7, 5, 3), (3, 16, 9, 9), (2, 65, 7, 7)])
def test_an_addition_and_its_gradients(mode, shape):
    x1, x2 = (torch.randint(-128, 128, shape).float() for _ in range(2))
    scales, zeros = (0.0817, 0.0561, 0.0613), (-7, 14, -2)
    arithmetic = chains.arithmetic_of(mode, "cpu")
    y, bits = arithmetic.add(arithmetic.enter(x1), arithmetic.enter(x2), scales, zeros, want_bits=True)
    y, g = arithmetic.leave(y), torch.randn(shape)
    gradients = arithmetic.add_backward(g, bits, scales, True, True)
    for k in range(2):
        alone = arithmetic.add_backward(g, bits, scales, k == 0, k == 1)
        assert alone[1 - k] is None
        torch.testing.assert_close(alone[k], gradients[k], rtol=2.0**-22, atol=0)
    s1, s2, s_y = (np.float32(s) for s in scales)
    a, b = x1.numpy(), x2.numpy()
    t = np.rint(((a - np.float32(-7)) * s1 + (b - np.float32(14)) * s2) / s_y) + np.float32(-2)
    assert torch.equal(y, torch.from_numpy(t.clip(-128, 127)))
    passed = g.double() * torch.from_numpy((t >= -128) & (t <= 127))
    for got, s in zip(gradients, scales, strict=False):
        want = passed * s / scales[2]
        # Three roundings.
        assert ((got.double() - want).abs() <= 3 * 2.0**-24 * want.abs()).all()


# Scales where halves are common: the last bit of each step decides.
@pytest.mark.parametrize("scales", [(0.3, 0.1, 0.2), (0.7, 0.3, 0.2), (0.0817, 0.0561, 0.0613), (0.9, 0.7, 0.6)])
@pytest.mark.parametrize("mode", MODES)
def test_an_addition_rounds_in_the_released_order(mode, scales):
    """All pairs of codes, in float32 step by step."""
    a, b = (v.reshape(1, 1, 256, 256) for v in np.meshgrid(*[np.arange(-128, 128, dtype=np.float32)] * 2))
    s1, s2, s_y = (np.float32(s) for s in scales)
    t = np.rint(((a - np.float32(1)) * s1 + (b - np.float32(2)) * s2) / s_y) + np.float32(3)
    arithmetic = chains.arithmetic_of(mode, "cpu")
    states = [arithmetic.enter(torch.from_numpy(v)) for v in (a, b)]
    y, _ = arithmetic.add(*states, scales, (1, 2, 3), want_bits=False)
    assert torch.equal(arithmetic.leave(y), torch.from_numpy(t.clip(-128, 127)))


def test_gradient_codes():
    t = torch.tensor([[3.0, -12.7, 0.04], [0.0, 0.0, 0.0], [254.0, 3.0, 1.0]])
    want = torch.tensor([[3.0, -12.7, 0.0], [0.0, 0.0, 0.0], [254.0, 4.0, 0.0]])
    torch.testing.assert_close(chains.fake_quantize(t, 0), want, rtol=2e-7, atol=0)
    torch.testing.assert_close(chains.fake_quantize(t.t(), 1), want.t(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_quantised_gradients_are_codes_of_the_plain_ones(mode):
    case = conv_case(2, n=2, channels=(6, 4), groups=1, kernel=3, stride=1, size=(5, 5))
    x, w, b = (t.clone().requires_grad_() for t in (case.x, case.w, case.b))
    step = chains.Conv(weight=w, bias=b, constants=case.constants, update=EVERYTHING)
    chains.run_chain(x, [step], mode=mode, quantize_gradient=True).backward(case.g)
    _, full_x, full_w, full_b = run(case, mode)
    assert torch.equal(x.grad, chains.fake_quantize(full_x, 1))
    assert torch.equal(w.grad, chains.fake_quantize(full_w, 0))
    assert torch.equal(b.grad, full_b)
    assert not torch.equal(w.grad, full_w)


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 16), (63,), (5, 13)])
def test_bits_come_back(shape):
    inside = torch.rand(shape) > 0.5
    bits = pack(inside)
    assert bits.numel() == (inside.numel() + 7) // 8
    assert torch.equal(unpack(bits, inside.shape), inside)


@pytest.mark.parametrize("mode", MODES)
def test_as_many_outputs_as_groups_is_not_yet_depthwise(mode):
    case = conv_case(0, n=2, channels=(4, 2), groups=2, kernel=3, stride=1, size=(4, 5))
    assert not case.constants.is_depthwise
    assert torch.equal(run(case, mode)[0].double(), torch.from_numpy(brute_force(case).y))


def test_an_unknown_arithmetic_is_refused():
    with pytest.raises(UserError, match="choose one of float_order, integer"):
        chains.check_mode("fast")


def test_float_order_passes_its_tensors_on():
    x = torch.randn(1, 1, 1, 1)
    assert float_order.enter(x) is x
