"""Acceptance checks 1 to 3: integers in range, round trips, stochastic rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.kernels.finish import Limits
from octo_exp.kernels.ops import backend, dequantize
from octo_exp.quant.forms import code_limits, scale_zero_point, tensor_range
from octo_exp.quant.quantizer import OperandSpec, RangeQuantizer
from octo_exp.quant.rounding import Clock, keyed_seed

quantize = backend("reference", "cpu").quantize
TENSORS = {
    "gaussian": torch.randn(1000, generator=torch.Generator().manual_seed(0)),
    "one_sided": torch.rand(1000, generator=torch.Generator().manual_seed(1)),
    "negative": -torch.rand(1000, generator=torch.Generator().manual_seed(2)),
    "offset": 5 + torch.rand(1000, generator=torch.Generator().manual_seed(3)),
    "constant": torch.full((100,), 3.7),
    "zero": torch.zeros(100),
    "outlier": torch.cat([torch.randn(999, generator=torch.Generator().manual_seed(4)), torch.tensor([1e6])]),
    "tiny": torch.full((10,), 1e-42),
    "huge": torch.tensor([3e38, -3e38, 1.0]),
}


def spec(**changes) -> OperandSpec:
    values = {"bits": 8, "symmetric": True, "granularity": "tensor", "rounding": "nearest", "range": "dynamic"}
    return OperandSpec(**({**values, "momentum": 0.9} | changes))


def quantizer(**changes) -> RangeQuantizer:
    return RangeQuantizer(spec(**changes), operand="x", layer="layer", clock=Clock(), stored=True)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_codes_are_int8_inside_the_stated_range(name, symmetric, rounding, bits):
    q = quantizer(symmetric=symmetric, rounding=rounding, bits=bits)(TENSORS[name])
    low, high = code_limits(bits, symmetric=symmetric)
    assert q.values.dtype == torch.int8
    assert q.values.min() >= low
    assert q.values.max() <= high
    assert torch.isfinite(q.scale).all()
    assert q.scale > 0
    if not symmetric:
        assert low <= int(q.zero_point) <= high


def test_code_limits_are_the_specifications():
    assert code_limits(8, symmetric=True) == (-127, 127)
    assert code_limits(8, symmetric=False) == (-128, 127)
    assert code_limits(4, symmetric=True) == (-7, 7)


def test_the_offset_tensor_does_not_leave_int8():
    low, high = tensor_range(TENSORS["offset"])
    scale, zero_point = scale_zero_point(low, high, 8, symmetric=False)
    assert int(zero_point) == -128
    assert abs(float(scale) - float(high) / 255) < 1e-6


finite = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=63)


@settings(max_examples=200)
@given(finite, st.booleans(), st.booleans(), st.integers(2, 8))
def test_round_trip(values, symmetric, stochastic, bits):
    t = torch.tensor(values)
    q = quantizer(symmetric=symmetric, rounding="stochastic" if stochastic else "nearest", bits=bits)(t)
    restored = q.dequantize()
    # Half a code (a whole one if stochastic); the asymmetric zero point's rounding moves the range by half a code more
    # at its ends; float32 rounding of t / s and of q * s.
    slack = 1.0 if stochastic else 0.5
    slack += 0.0 if symmetric else 0.5
    budget = slack * q.scale * (1 + 1e-5) + 4e-7 * t.abs().max()
    assert ((restored - t).abs() <= budget).all()
    zero = 0 if q.zero_point is None else q.zero_point
    low, high = code_limits(bits, symmetric=symmetric)
    again = quantize(restored, q.scale, torch.as_tensor(zero), Limits(low, high))
    assert torch.equal(again, q.values)
    real_zero = quantize(torch.zeros(1), q.scale, torch.as_tensor(zero), Limits(low, high))
    assert dequantize(real_zero, q.scale, torch.as_tensor(zero)).item() == 0.0


@pytest.mark.parametrize("symmetric", [True, False])
def test_error_is_at_most_half_a_code_inside_the_range(symmetric):
    t = TENSORS["gaussian"]
    q = quantizer(symmetric=symmetric)(t)
    zero = 0 if q.zero_point is None else int(q.zero_point)
    codes = q.values.int()
    inside = (t >= (codes.min() - zero) * q.scale) & (t <= (codes.max() - zero) * q.scale)
    assert inside.float().mean() > 0.99
    error = (q.dequantize() - t).abs()[inside]
    assert (error <= q.scale / 2 * (1 + 1e-5)).all()


def test_stochastic_rounding_is_unbiased_and_keyed():
    t = torch.full((10_000,), 0.3)
    scale, zero = torch.tensor(1.0), torch.tensor(0.0)

    def draw(*key):
        return quantize(t, scale, zero, Limits(-127, 127, seed=keyed_seed(*key)))

    mean = draw(0, 1, "a").float().mean().item()
    # 4 standard errors of a Bernoulli(0.3) mean over 10,000 draws: 4 * sqrt(.21 / 1e4) = 0.0183.
    assert abs(mean - 0.3) <= 0.018
    assert torch.equal(draw(0, 1, "a"), draw(0, 1, "a"))
    for other in ((1, 1, "a"), (0, 2, "a"), (0, 1, "b")):
        assert not torch.equal(draw(0, 1, "a"), draw(*other))
    assert keyed_seed(1, 2) != keyed_seed(2, 1)


def test_stochastic_quantizer_repeats_with_the_clock_and_is_deterministic_in_evaluation():
    clock = Clock(seed=3, step=5)
    q = RangeQuantizer(spec(rounding="stochastic"), operand="x", layer="l", clock=clock, stored=True)
    t = torch.randn(500)
    first = q(t).values
    assert torch.equal(q(t).values, first)
    clock.step = 6
    assert not torch.equal(q(t).values, first)
    q.eval()
    nearest = quantize(t, q(t).scale, torch.tensor(0.0), Limits(-127, 127))
    for clock.step in (6, 7):
        assert torch.equal(q(t).values, nearest)


def test_noise_depends_on_every_part_of_its_key():
    t = torch.randn(500)

    def draw(*, seed: int = 0, step: int = 0, layer: str = "a", operand: str = "x") -> torch.Tensor:
        clock = Clock(seed=seed, step=step)
        return RangeQuantizer(spec(rounding="stochastic"), operand=operand, layer=layer, clock=clock, stored=False)(
            t
        ).values

    assert torch.equal(draw(), draw())
    for other in ({"seed": 1}, {"step": 1}, {"layer": "b"}, {"operand": "w"}):
        assert not torch.equal(draw(), draw(**other)), other


def test_per_channel_scales():
    w = torch.randn(4, 3, 2, 2) * torch.tensor([1.0, 10.0, 0.0, 1e-3]).reshape(4, 1, 1, 1)
    q = RangeQuantizer(spec(granularity="channel"), operand="w", layer="l", clock=Clock(), stored=False)(w)
    assert q.scale.shape == (4, 1, 1, 1)
    assert torch.allclose(q.scale.flatten()[[0, 1, 3]] * 127, w.abs().amax((1, 2, 3))[[0, 1, 3]])
    assert ((q.dequantize() - w).abs() <= q.scale / 2 * (1 + 1e-5)).all()


def test_evaluation_uses_the_stored_range_and_changes_nothing():
    q = quantizer(momentum=0.75)
    for peak in (1.0, 3.0):
        q(torch.tensor([-peak, peak]))
    assert q.high.item() == 1.5
    q.eval()
    before = {k: v.clone() for k, v in q.state_dict().items()}
    assert q(torch.tensor([100.0])).values.item() == 127
    assert float(q(torch.tensor([100.0])).scale) == pytest.approx(1.5 / 127)
    assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())


def test_evaluation_without_a_stored_range_is_refused():
    with pytest.raises(UserError, match="layer 'layer' has no stored range"):
        quantizer().eval()(torch.ones(3))


def test_hindsight_uses_the_steps_before():
    q = quantizer(range="hindsight", momentum=0.0)
    assert float(q(torch.tensor([-1.0, 1.0])).scale) == pytest.approx(1 / 127)
    later = q(torch.tensor([-4.0, 4.0]))
    assert float(later.scale) == pytest.approx(1 / 127)
    assert later.values.tolist() == [-127, 127]
    assert q.inside(torch.tensor([-4.0, 0.9]), later).tolist() == [False, True]
    assert float(q(torch.tensor([-1.0, 1.0])).scale) == pytest.approx(4 / 127)


def test_inside_follows_the_zero_point():
    q = quantizer(range="hindsight", momentum=0.0, symmetric=False)
    q(torch.tensor([0.0, 2.0]))
    t = torch.tensor([-1.0, 0.0, 1.9, 3.0])
    assert q.inside(t, q(t)).tolist() == [False, True, True, False]


def test_hindsight_ranges_are_in_the_checkpoint():
    for range_, saved in (("dynamic", set()), ("hindsight", {"low", "high", "count"})):
        q = RangeQuantizer(spec(range=range_), operand="g", layer="l", clock=Clock(), stored=False)
        assert set(q.state_dict()) == saved
    assert set(quantizer().state_dict()) == {"low", "high", "count"}


def test_only_activations_have_a_stored_range_in_evaluation():
    for operand in ("w", "g"):
        q = RangeQuantizer(spec(range="hindsight"), operand=operand, layer="l", clock=Clock(), stored=False)
        q.eval()
        before = {k: v.clone() for k, v in q.state_dict().items()}
        assert float(q(torch.tensor([-2.0, 1.0])).scale) == pytest.approx(2 / 127)
        assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 9}, "bits"),
        ({"bits": 1}, "bits"),
        (
            {"granularity": "pixel"},
            "granularity='pixel' is unknown; choose one of tensor, channel, input_channel, sample, row",
        ),
        ({"rounding": "up"}, "rounding"),
        ({"range": "psychic"}, "range"),
        ({"momentum": 1.0}, "momentum"),
        ({"granularity": "channel", "symmetric": False}, "zero point a channel"),
        ({"granularity": "channel", "range": "hindsight"}, "range=dynamic"),
    ],
)
def test_bad_specs_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        spec(**changes)
