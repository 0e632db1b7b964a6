"""Quantisation and its noise in Triton, through the interpreter where there is no GPU: the plain form's bits."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from octo_exp.kernels import ops  # noqa: E402
from octo_exp.kernels.finish import Limits  # noqa: E402
from octo_exp.kernels.plain import philox  # noqa: E402
from octo_exp.kernels.triton import quantize  # noqa: E402
from tests.kernels.test_triton_fused import DEVICE, SIZES, UNSCALED, both, poison  # noqa: E402

# The interpreter's numpy says where a quotient is infinite; it is clamped to the last code.
pytestmark = pytest.mark.filterwarnings("ignore:.*overflow encountered in divide:RuntimeWarning")

EXTREMES = [float("inf"), -float("inf"), 3e38, -3e38, 1e-42, 2.0**23, -0.01, 0.01, 0.03, -0.05]


@triton.jit
def _draw(out_ptr, ours_ptr, seed, start, BLOCK: tl.constexpr):  # noqa: N803
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.rand(seed, start + i.to(tl.int64)))
    tl.store(ours_ptr + i, quantize.uniform(seed, start + i.to(tl.int64)))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 1, 1234567890123456789])
@pytest.mark.parametrize("start", [0, 2**31 - 3, 2**32 - 3])
def test_triton_draws_the_noise_of_the_plain_form(seed, start):
    rand, ours = torch.empty(8, device=DEVICE), torch.empty(8, device=DEVICE)
    _draw[(1,)](rand, ours, seed, start, BLOCK=8)
    expected = philox.uniform(seed, 8, DEVICE, start)
    assert torch.equal(rand, expected)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("size", [*SIZES, 1025])
@pytest.mark.parametrize("seed", [None, 0, 2**62 + 12345])
def test_triton_quantizes_as_the_plain_form(monkeypatch, size, seed):
    poison(monkeypatch)
    t = torch.cat([torch.tensor(EXTREMES), torch.randn(size)])[-size:].to(DEVICE)
    low, high = torch.tensor(-1.5, device=DEVICE), torch.tensor(2.0, device=DEVICE)
    for bounds in ({}, {"low": low}, {"low": low, "high": high}):
        for zero in (0, -128, 3.0):
            args = (t, torch.tensor(0.02, device=DEVICE), torch.tensor(zero, device=DEVICE))
            both("quantize", *args, Limits(-128, 127, **bounds, seed=seed))
            both("quantize", *args, Limits(-7, 7, **bounds, seed=seed))


def test_triton_quantizes_extremes_and_ties():
    t, zero = torch.tensor([*EXTREMES, *[k + 0.5 for k in range(-130, 130)]], device=DEVICE), 0 * UNSCALED
    for scale in (1.0, 0.02, 2.0**-126):
        both("quantize", t, scale * UNSCALED, zero, Limits(-128, 127))


@pytest.mark.parametrize("seed", [None, 6])
def test_triton_quantizes_every_layout_and_scale(seed, monkeypatch):
    zero, limits = torch.tensor(2, device=DEVICE), Limits(-128, 127, seed=seed)
    t = torch.randn(7, 3, 5, 4).to(DEVICE)
    for layout in (t, t.contiguous(memory_format=torch.channels_last), t.transpose(1, 3), t[:, :, ::2]):
        rows, channels = torch.rand(layout.shape[0], 1, 1, 1) + 0.01, torch.rand(1, layout.shape[1], 1, 1) + 0.01
        for scale in (0.02 * UNSCALED, rows.to(DEVICE), channels.to(DEVICE)):
            assert both("quantize", layout, scale, zero, limits).stride() == torch.empty_like(layout).stride()
    monkeypatch.setattr(ops.Backend, "quantize", None)
    for scale in (0.02 * UNSCALED, torch.rand(7, 1, 1, 1).to(DEVICE) + 0.01):
        assert ops.backend("triton", DEVICE).quantize(t, scale, zero, limits).shape == t.shape
