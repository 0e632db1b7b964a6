import torch

from octo_exp.kernels import backend, ops
from octo_exp.kernels.backend import scale_accumulator
from octo_exp.kernels.finish import Limits
from octo_exp.kernels.int8 import has_row_scales
from octo_exp.kernels.ops import dequantize

quantize = ops.backend("reference", "cpu").quantize


def test_blocks_change_nothing(monkeypatch):
    t = torch.randn(5, 6, 11, 13)
    zero = torch.tensor(3.0)
    for layout in (t, t.to(memory_format=torch.channels_last), t.transpose(1, 3)):
        for seed in (None, 11):
            limits = Limits(-128, 127, torch.tensor(-1.5), torch.tensor(2.0), seed)
            whole = quantize(layout, torch.tensor(0.02), zero, limits)
            with monkeypatch.context() as patch:
                patch.setattr(backend, "BLOCK", 100)
                blocked = quantize(layout, torch.tensor(0.02), zero, limits)
            assert torch.equal(whole, blocked)
            assert whole.dtype == torch.int8


def test_values_are_clipped_before_they_are_rounded():
    t, scale, zero = torch.linspace(-3, 3, 101), torch.tensor(0.02), torch.tensor(3.0)
    low, high = torch.tensor(-1.0), torch.tensor(2.0)
    for seed in (None, 11):
        clipped = quantize(t, scale, zero, Limits(-128, 127, low, high, seed))
        expected = quantize(t.clamp(-1.0, 2.0), scale, zero, Limits(-128, 127, seed=seed))
        assert torch.equal(clipped, expected)
    assert int(clipped.min()) in (-47, -46)


def test_one_channels_scale_may_have_the_tensors_dimensions(monkeypatch):
    monkeypatch.setattr(backend, "BLOCK", 16)
    t, scale, zero = torch.randn(1, 70), torch.full((1, 1), 0.02), torch.tensor(0.0)
    out = quantize(t, scale, zero, Limits(-127, 127))
    assert torch.equal(out, quantize(t, scale[0, 0], zero, Limits(-127, 127)))


def test_a_scale_a_row_changes_no_draw():
    t, scale, zero = torch.randn(7, 9), torch.tensor(0.02), torch.tensor(0.0)
    for layout in (t, t.reshape(7, 3, 3, 1), t.reshape(7, 3, 3, 1).contiguous(memory_format=torch.channels_last)):
        rows = scale.expand(7).reshape(7, *[1] * (layout.dim() - 1))
        expected = quantize(layout, scale, zero, Limits(-127, 127, seed=11))
        assert torch.equal(quantize(layout, rows, zero, Limits(-127, 127, seed=11)), expected)


def test_row_scales_are_one_a_first_dimension():
    t = torch.randn(4, 4)
    assert has_row_scales(t, torch.ones(4, 1))
    for scale in (torch.ones(4), torch.ones(1, 4), torch.ones(4, 4), torch.ones(1, 1), torch.tensor(1.0)):
        assert not has_row_scales(t, scale)
    # One a column: every implementation broadcasts it.
    columns, zero = torch.rand(4) + 0.1, torch.tensor(0.0)
    for impl in ("reference", "torch"):
        out = ops.backend(impl, "cpu").quantize(t, columns, zero, Limits(-127, 127))
        assert torch.equal(out, (t / columns).round().to(torch.int8))


def test_nearest_even_and_saturation():
    t = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0])
    q = quantize(t, torch.tensor(1.0), torch.tensor(0.0), Limits(-127, 127))
    assert q.tolist() == [0, 2, 2, 0, -2, 127, -127]


def test_dequantize_inverts_the_codes():
    q = torch.arange(-128, 128, dtype=torch.int8)
    scale, zero = torch.tensor(0.037), torch.tensor(-128)
    assert torch.equal(quantize(dequantize(q, scale, zero), scale, zero, Limits(-128, 127)), q)


def test_accumulator_blocks_and_widths(monkeypatch):
    acc = torch.randint(-(2**30), 2**30, (37, 5))
    scale, offset = torch.rand(5), torch.randn(5)
    monkeypatch.setattr(backend, "BLOCK", 16)
    for dtype in (torch.int32, torch.int64):
        out = scale_accumulator(acc.to(dtype), scale, offset)
        assert torch.equal(out, acc.to(dtype) * scale + offset)
    assert torch.equal(scale_accumulator(acc, torch.tensor(0.5), None), acc * 0.5)
