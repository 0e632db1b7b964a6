"""Ranges by each method, and the sample they are chosen from."""

import itertools

import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.graph.calibrate import observe as module
from octo_exp.graph.calibrate.observe import Observed
from octo_exp.graph.calibrate.plan import NO_BOUNDS
from octo_exp.graph.calibrate.scales import Quantization, check_method, choose, quantization


def seen(*batches: torch.Tensor, bounds: tuple[float, float] = NO_BOUNDS) -> Observed:
    observed = Observed(bounds, sample=True)
    for batch in batches:
        observed.update(batch)
    return observed


@pytest.mark.parametrize("size", [1, 7, 16, 63, 65])
def test_small_tensors_are_kept_whole(size):
    values = torch.randn(3, size)
    observed = seen(*values)
    assert torch.equal(observed.values, values.flatten())
    assert (observed.low, observed.high) == (float(values.min()), float(values.max()))


def test_values_are_taken_within_their_bounds():
    observed = seen(torch.tensor([-3.0, 2.0, 9.0]), bounds=(0.0, 6.0))
    assert observed.values.tolist() == [0.0, 2.0, 6.0]
    assert (observed.low, observed.high) == (0.0, 6.0)


def test_the_sample_is_bounded_and_every_value_has_the_same_chance(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 1000)
    batches = [torch.full((size,), float(i)) for i, size in enumerate((500, 3000, 900, 15600))]
    observed = seen(*batches)
    assert len(observed.values) == len(observed.keys) == 1000
    shares = torch.bincount(observed.values.long(), minlength=4) / 1000
    expected = torch.tensor([500, 3000, 900, 15600]) / 20000
    sigma = (expected * (1 - expected) / 1000).sqrt()
    assert ((shares - expected).abs() <= 4 * sigma).all()
    # Which of a batch: not its first ones.
    observed = seen(torch.arange(100_000.0))
    assert abs(float(observed.values.mean()) / 50_000 - 1) < 4 / (12 * 1000) ** 0.5 * 2
    assert (observed.low, observed.high) == (0.0, 99_999.0)


def test_the_same_values_give_the_same_sample(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 100)
    values = torch.randn(1000)
    first = seen(values)
    torch.rand(5)
    assert torch.equal(first.values, seen(values).values)


def test_quantization_contains_zero():
    assert quantization(1.0, 255.0) == (1.0, -128)
    assert quantization(-255.0, -3.0) == (1.0, 127)
    assert quantization(-64.0, 63.5) == (0.5, 0)


@pytest.mark.parametrize("method", ["absmax", "percentile", "mse"])
def test_tensors_of_zeros_and_nearly_so(method):
    zeros = torch.zeros(1000)
    assert choose(seen(zeros), method, 99.0, symmetric=False).scale == pytest.approx(2 / 255)
    assert choose(seen(zeros, bounds=(0.0, 6.0)), method, 99.0, symmetric=False) == (pytest.approx(1 / 255), -128)
    # One value in a thousand is beyond the percentile, and all there is.
    zeros[3] = 5.0
    assert choose(seen(zeros, bounds=(0.0, 6.0)), method, 99.0, symmetric=False) == (pytest.approx(5 / 255), -128)


def test_absmax_is_all_that_was_seen():
    values = torch.cat([torch.rand(1000), torch.tensor([-7.0, 30.0])])
    assert choose(seen(values), "absmax", 0, symmetric=False) == quantization(-7.0, 30.0)


def test_percentile_leaves_out_the_same_share_at_either_end():
    values = torch.arange(-5000.0, 5001.0)[torch.randperm(10001)]
    scale, zero = choose(seen(values), "percentile", 99.0, symmetric=False)
    assert scale == pytest.approx(9800 / 255, rel=1e-6)
    assert zero == 0
    assert choose(seen(values), "percentile", 100, symmetric=False) == choose(
        seen(values), "absmax", 0, symmetric=False
    )
    relu = values.clamp(min=0)
    assert choose(seen(relu), "percentile", 99.0, symmetric=False) == (pytest.approx(4900 / 255, rel=1e-6), -128)


TENSORS = {
    "uniform": torch.rand(4096, generator=torch.Generator().manual_seed(1)) - 0.3,
    "outlier": torch.cat([torch.randn(4096, generator=torch.Generator().manual_seed(2)), torch.tensor([40.0])]),
    "heavy": torch.randn(4096, generator=torch.Generator().manual_seed(3)) ** 3,
    "relu": torch.randn(4096, generator=torch.Generator().manual_seed(4)).clamp(min=0) ** 2,
    "tail": torch.cat([torch.randn(60_000, generator=torch.Generator().manual_seed(6)).abs(), torch.tensor([14.0])]),
    "negative": -(torch.rand(4096, generator=torch.Generator().manual_seed(5)) ** 4),
}
TENSORS["low_tail"] = -TENSORS["tail"]


@pytest.mark.parametrize("name", TENSORS)
def test_mse_is_the_best_of_a_grid_of_both_ends(name):
    """Against every pair of fractions: the search of one side at a time ends within a hundredth of the least error."""
    values = TENSORS[name]
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    fractions = torch.linspace(0.02, 1, 50).tolist()
    pairs = itertools.product(fractions if low else [1.0], fractions if high else [1.0])
    least = min(fake(values, quantization(low * a, high * b)) for a, b in pairs)
    error = fake(values, choose(seen(values), "mse", 0, symmetric=False))
    assert error <= 1.01 * least
    assert error <= (0.95 if "tail" in name else 1.0) * fake(values, choose(seen(values), "absmax", 0, symmetric=False))


def fake(values: torch.Tensor, q: Quantization) -> float:
    """Squared error by torch's own fake quantisation."""
    codes = torch.fake_quantize_per_tensor_affine(values, q.scale, q.zero, -128, 127)
    return float((codes - values).double().square().sum())


@pytest.mark.parametrize(("method", "percentile"), [("minmax", 0), ("percentile", 50), ("percentile", 100.5)])
def test_unknown_methods_and_percentiles_are_refused(method, percentile):
    with pytest.raises(UserError, match=r"activations='minmax'|percentile="):
        check_method(method, percentile)
