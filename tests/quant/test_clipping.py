"""Acceptance check 10, and what PRC's learned form promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.quant.clipping import ClipForm, gaussian_bounds, range_log_gradient, ratio_bounds
from octo_exp.quant.quantizer import OperandSpec, RangeQuantizer
from octo_exp.quant.rounding import Clock
from tests.quant.helpers import CLIPS, clipping


def clip(spec: ClipForm, t: torch.Tensor) -> torch.Tensor:
    lower, upper = spec.build().bounds(t, *torch.aminmax(t))
    return torch.clamp(t, lower, upper)


tensors = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40).map(torch.tensor)


@settings(max_examples=300)
@given(
    tensors,
    st.sampled_from(list(CLIPS)),
    st.floats(0.05, 1.0),
    st.floats(0.1, 4.0),
    st.floats(0.05, 1.0),
)
def test_sign_order_and_range_are_kept(t, form, coefficient, z, rho):
    out = clip(clipping(form=form, coefficient=coefficient, z=z, rho_init=rho), t)
    assert torch.isfinite(out).all()
    assert (out.abs() <= t.abs()).all()
    assert (torch.sign(out) * torch.sign(t) >= 0).all()
    assert out.min() >= t.min()
    assert out.max() <= t.max()
    order = t.argsort()
    assert (out[order].diff() >= 0).all()


@pytest.mark.parametrize("form", CLIPS)
@pytest.mark.parametrize("t", [torch.zeros(5), torch.full((5,), 2.5), torch.full((5,), -2.5)])
def test_zero_and_constant_tensors_are_safe(form, t):
    spec = clipping(form=form, coefficient=0.5, rho_init=0.5)
    out = clip(spec, t)
    assert torch.isfinite(out).all()
    assert torch.equal(out, t)


def test_a_mean_that_rounds_past_the_range_does_not_leave_it():
    for t in (torch.full((3,), 742.3363037109375), torch.full((3,), -742.3363037109375)):
        assert t.mean() != t[0]
        lower, upper = gaussian_bounds(t, *torch.aminmax(t), 0.25)
        assert torch.equal(torch.clamp(t, lower, upper), t)


def test_coefficient_one_is_the_identity():
    t = torch.randn(1000)
    assert torch.equal(clip(clipping(coefficient=1.0), t), t)
    assert torch.equal(clip(clipping(form="learned"), t), t)


def test_ratio_and_gaussian_clip_where_they_say():
    t = torch.tensor([-10.0, -1.0, 0.0, 1.0, 20.0])
    lower, upper = ratio_bounds(*torch.aminmax(t), 0.9)
    assert (lower.item(), upper.item()) == (pytest.approx(-9.0), pytest.approx(18.0))
    t = torch.randn(100_000)
    lower, upper = gaussian_bounds(t, *torch.aminmax(t), 2.576)
    assert lower.item() == pytest.approx(-2.576, abs=0.03)
    assert ((t < lower) | (t > upper)).float().mean().item() == pytest.approx(0.01, abs=0.003)


# Numbers whose squares are float32's.
eighths = st.lists(st.integers(-8000, 8000), min_size=1, max_size=40).map(lambda values: torch.tensor(values) / 8)


@settings(max_examples=100)
@given(eighths, st.integers(0, 60), st.floats(0.1, 3.0))
def test_gaussian_bounds_are_those_of_the_whole_tensor_with_its_zeros(t, zeros, z):
    # A pooled gradient leaves out the zeros between its maxima: mean and sigma are those of all elements.
    whole = torch.cat([t, torch.zeros(zeros)]).double()
    low, high = torch.aminmax(t)
    mean, sigma = whole.mean(), (whole - whole.mean()).square().mean().sqrt()
    expected = [
        torch.clamp(mean - z * sigma, max=0.0).clamp(low, high),
        torch.clamp(mean + z * sigma, min=0.0).clamp(low, high),
    ]
    found = gaussian_bounds(t, low, high, z, len(whole))
    # float32 sums of up to 40 terms.
    size = float(t.abs().max())
    assert [float(v) for v in found] == pytest.approx([float(v) for v in expected], rel=1e-4, abs=1e-4 * size)


def test_both_gaussian_bounds_cut_a_tensor_off_its_mean():
    t = torch.tensor([-8.0, -1.0, 0.0, 1.0, 2.0, 12.0])
    # mean 1, sigma^2 = (81 + 4 + 1 + 0 + 1 + 121) / 6; six zeros more: mean 1/2, sigma^2 = 214 / 12 - 1/4.
    for numel, mean, sigma in ((None, 1.0, (208 / 6) ** 0.5), (12, 0.5, (214 / 12 - 0.25) ** 0.5)):
        lower, upper = gaussian_bounds(t, *torch.aminmax(t), 0.5, numel)
        assert lower.item() == pytest.approx(mean - sigma / 2, rel=1e-5)
        assert upper.item() == pytest.approx(mean + sigma / 2, rel=1e-5)


def test_range_gradient_is_the_derivative_of_the_error():
    # Away from rounding boundaries the error is differentiable in r except through round(): compare with the
    # straight-through surrogate, q held constant inside and at the end codes outside.
    t = torch.tensor([0.31, -0.77, 5.0, -9.0], dtype=torch.float64)
    r = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    q = torch.clamp(torch.round(t / (r / 127)), -127, 127).detach()
    inside = t.abs() <= r
    # Straight-through: d(s * round(t/s))/ds = round(t/s) - t/s inside, +-127 outside.
    surrogate = torch.where(inside, (r / 127) * (q - t / (r.detach() / 127)) + t, (r / 127) * q)
    error = (surrogate - t).square().sum()
    error.backward()
    expected = (r.grad * r / error).item()
    actual = range_log_gradient(t, q.to(torch.int8), r.detach(), 127).item()
    assert actual == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("heavy", "shrinks"), [(True, True), (False, False)])
def test_learned_range_lowers_the_quantization_error(heavy, shrinks):
    # A few outliers: 4-bit codes serve the bulk better with a smaller range; uniform data has nothing to cut.
    generator = torch.Generator().manual_seed(0)
    clipper = clipping(form="learned", learning_rate=0.02).build()

    def draw() -> torch.Tensor:
        if not heavy:
            return torch.rand(4096, generator=generator) * 2 - 1
        t = torch.randn(4096, generator=generator)
        t[:4] *= 5
        return t

    errors = []
    for _ in range(150):
        t = draw()
        lower, upper = clipper.bounds(t, *torch.aminmax(t))
        bound = torch.maximum(-lower, upper)
        q = torch.clamp(torch.round(t / (bound / 7)), -7, 7)
        errors.append((q * (bound / 7) - t).square().mean().item())
        clipper.learn(t, q.to(torch.int8), bound / 7, 7)
    rho = clipper.log_rho.exp().item()
    if shrinks:
        assert rho < 0.8
        assert sum(errors[-20:]) < 0.8 * sum(errors[:20])
    else:
        assert rho > 0.85


def gradient_quantizer(spec: ClipForm, **changes) -> RangeQuantizer:
    values = {"bits": 8, "symmetric": True, "granularity": "tensor", "rounding": "nearest", "range": "dynamic"}
    operand = OperandSpec(**({**values, "momentum": 0.9} | changes))
    return RangeQuantizer(operand, operand="g", layer="l", clock=Clock(), stored=False, clip=spec)


def test_the_narrow_side_is_clipped_too():
    # One scale serves both sides, so the codes' own ends cut the wide side alone.
    q = gradient_quantizer(clipping(coefficient=0.5))(torch.tensor([-1.0, -0.2, 10.0]))
    assert float(q.scale) == pytest.approx(5 / 127)
    assert q.values.tolist() == [round(-0.5 / 5 * 127), round(-0.2 / 5 * 127), 127]


def test_the_range_is_learned_in_training_only():
    q = gradient_quantizer(clipping(form="learned", learning_rate=0.1), bits=4)
    t = torch.randn(500)
    q(t)
    assert q.clipper.last_max == t.abs().max()
    assert q.clipper.log_rho < 0
    before = {k: v.clone() for k, v in q.eval().state_dict().items()}
    q(2 * t)
    assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())


def test_the_learned_range_is_a_share_of_the_last_steps_maximum():
    clipper = clipping(form="learned", rho_init=0.5, learning_rate=0.0).build()
    ends = torch.tensor(-10.0), torch.tensor(10.0)
    assert [round(float(v), 5) for v in clipper.bounds(torch.ones(1), *ends)] == [-5.0, 5.0]
    clipper.learn(torch.tensor([-4.0, 1.0]), torch.tensor([-127, 32], dtype=torch.int8), torch.tensor(4 / 127), 127)
    assert [round(float(v), 5) for v in clipper.bounds(torch.ones(1), *ends)] == [-2.0, 2.0]


def test_a_learning_step_is_bounded():
    # Just outside the range d log E / d log r is -200 here: one step must not throw the range away.
    clipper = clipping(form="learned", rho_init=0.5, learning_rate=0.01).build()
    clipper.learn(torch.tensor([1.01]), torch.tensor([127], dtype=torch.int8), torch.tensor(1 / 127), 127)
    assert clipper.log_rho.item() == pytest.approx(math.log(0.5) + 0.02)


def test_learned_state_is_saved_and_other_forms_save_none():
    assert set(clipping(form="learned").build().state_dict()) == {"log_rho", "last_max"}
    assert not clipping().build().state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"coefficient": 0.0},
        {"coefficient": 1.2},
        {"form": "gaussian", "z": 0.0},
        {"form": "gaussian", "z": math.nan},
        {"form": "learned", "rho_init": 0.0},
        {"form": "learned", "learning_rate": -1},
    ],
)
def test_bad_values_are_refused(changes):
    with pytest.raises(UserError, match=r"quant\.clip"):
        clipping(**changes)
