"""The compiled CPU path where floats meet it: quantisation, activation, extreme integers and the fp32 convolution."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from octo_exp.kernels import ops
from octo_exp.kernels.cpu import conv
from octo_exp.kernels.finish import Finish, Limits
from octo_exp.kernels.ops import ConvGeometry
from octo_exp.workload import Epilogue
from tests.kernels.test_cpu_fused import STEPS, WIDTHS, bits_equal, both, steps_of
from tests.kernels.test_integers import CONVS

LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "transposed": lambda t: t.permute(2, 0, 3, 1),
    "expanded": lambda t: t[:1].expand_as(t),
    "part": lambda t: t[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 7, 3, 5), (3, 16, 5, 4), (2, 63, 9, 7), (3, 65, 40, 21)])
def test_quantized_codes_of_every_layout(layout, shape):
    t = LAYOUTS[layout](torch.randn(shape))
    bounds = {"low": torch.tensor(-1.0), "high": torch.tensor(0.7)}
    for zero, extra in itertools.product((0.0, -128.0, 37.0), ({}, bounds)):
        q = both("quantize", t, torch.tensor(0.0123), torch.tensor(zero), Limits(-128, 127, **extra))
        assert q.stride() == torch.empty_like(t).stride()


@pytest.mark.parametrize("numel", [1, 7, 16, 63, 65, 16_384, 16_385, 65_537])
def test_quantized_codes_of_every_size(numel):
    t = torch.randn(numel)
    both("quantize", t, torch.tensor(0.0123), torch.tensor(0, dtype=torch.int32), Limits(-7, 7))


def test_halves_go_to_the_even_code_and_the_ends_saturate():
    t = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, float("inf"), -float("inf"), 1e38])
    q = both("quantize", t, torch.tensor(1.0), torch.tensor(0.0), Limits(-127, 127))
    assert q.tolist() == [0, 2, 2, 0, -2, 127, -127, 127, -127, 127]


@pytest.mark.parametrize("shape", [(1, 70), (7, 63), (65, 1), (16, 7, 3, 3), (63, 16, 1, 1)])
def test_quantized_codes_with_a_scale_a_row(shape):
    t = torch.randn(shape)
    scale = torch.rand(shape[0], *[1] * (len(shape) - 1)) + 0.01
    for given in (t, t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.t().contiguous().t()):
        for zero in (0.0, 3.0):
            both("quantize", given, scale, torch.tensor(zero), Limits(-127, 127))


@pytest.mark.parametrize("scale_shape", [(5,), (1, 5)])
def test_a_scale_a_column_is_not_one_a_row(scale_shape):
    scale = torch.rand(scale_shape) + 0.01
    both("quantize", torch.randn(5, 5), scale, torch.tensor(0.0), Limits(-127, 127))


@pytest.mark.parametrize("channels", [1, 7, 8, 16, 63, 65])
@pytest.mark.parametrize("steps", STEPS[1:], ids=str)
def test_activation_masks_and_spreading(steps, channels):
    generator = torch.Generator().manual_seed(0)
    for size in ((6, 6), (7, 8), (3, 3), (17, 3)):
        y = torch.randint(-3, 3, (2, channels, *size), generator=generator).float()
        _, mask = both("activate", y, steps)
        g = torch.randn(2, channels, size[0] // steps.pool, size[1] // steps.pool)
        for given in (g, g.contiguous(memory_format=torch.channels_last), g[:, :1].expand_as(g)):
            both("mask_gradient", given, mask, steps)
        if steps.pool > 1:
            for t in (g, torch.randint(-128, 128, g.shape, dtype=torch.int8)):
                both("spread", t, mask, steps, size)


@pytest.mark.parametrize("shape", [(7,), (1, 9), (5, 65), (2, 3, 16)])
def test_activation_of_rows(shape):
    y = torch.randn(shape)
    _, mask = both("activate", y, Epilogue(relu=True))
    both("mask_gradient", torch.randn(shape), mask, Epilogue(relu=True))


def test_nan_passes_the_epilogue():
    y = torch.randn(2, 9, 6, 6)
    y[0, 3, 2, 2] = y[1, 8, 5, 5] = float("nan")
    for steps in STEPS[1:]:
        compiled, plain = (ops.backend(impl, "cpu").activate(y, steps) for impl in ("torch", "reference"))
        assert compiled[0].isnan().sum() == 2
        bits_equal(compiled[0].nan_to_num(99.0), plain[0].nan_to_num(99.0))
        bits_equal(compiled[1], plain[1])


PAIRS = [(127, 127), (-127, 127), (-128, -127), (-128, 127), (-128, -128)]


def extremes(k: int, pair: tuple[int, int]) -> list[torch.Tensor]:
    """Every operation on constant codes with sums of k products, times 1."""
    one, plain = torch.tensor(1.0), ConvGeometry()

    def of(code: int, *shape: int) -> torch.Tensor:
        return torch.full(shape, code, dtype=torch.int8)

    a, b = pair
    on, finish = ops.backend("torch", "cpu"), Finish(one)
    return [
        on.matmul_scaled(of(a, 2, k), of(b, k, 3), finish)[0],
        on.matmul_grad_weight(of(a, k, 2), of(b, k, 3), finish),
        on.conv2d_scaled(of(a, 2, k, 1, 1), of(b, 3, k, 1, 1), plain, 0, finish)[0],
        on.conv2d_grad_input_scaled(of(a, 2, k, 1, 1), of(b, k, 3, 1, 1), (1, 1), plain, scale=one),
        on.conv2d_grad_weight_scaled(of(a, 1, 2, 1, k), of(b, 1, 3, 1, k), (1, 1), plain, 0, finish),
    ]


@pytest.mark.parametrize("k", [4608, ops.MAX_K, ops.MAX_K + 1, 262_144])
@pytest.mark.parametrize("pair", PAIRS)
def test_extreme_codes_are_summed_exactly(k, pair):
    # One rounding, of the exact sum to float32.
    expected = torch.tensor(k * pair[0] * pair[1]).float()
    for out in extremes(k, pair):
        bits_equal(out, expected.expand_as(out))


def test_a_weight_gradient_is_exact_over_chunks(monkeypatch):
    x = torch.full((31, 2, 64, 66), -128, dtype=torch.int8)
    monkeypatch.setattr(conv, "CHUNK_BYTES", 64 * 66 * 2 * 4)
    assert x.numel() // 2 <= ops.MAX_K
    dw = both("conv2d_grad_weight_scaled", x, x, (1, 1), ConvGeometry(), 0, Finish(torch.tensor(1.0)))
    assert dw.flatten().tolist() == [x.numel() // 2 * 128 * 128] * 4


def test_a_longer_weight_gradient_is_summed_in_int64():
    x = torch.full((4, 1, 256, 257), -128, dtype=torch.int8)
    assert x.numel() > ops.MAX_K
    dw = both("conv2d_grad_weight_scaled", x, x, (1, 1), ConvGeometry(), 0, Finish(torch.tensor(1.0)))
    assert dw.item() == float(torch.tensor(x.numel() * 128 * 128).float())


def test_an_empty_batch_gives_an_empty_output():
    x, w = torch.empty(0, 3, 5, 5, dtype=torch.int8), torch.ones(4, 3, 3, 3, dtype=torch.int8)
    assert both("conv2d_scaled", x, w, ConvGeometry(), 0, Finish(torch.tensor(1.0)))[0].shape == (0, 4, 3, 3)


@pytest.mark.parametrize(("k", "compiled"), [(ops.MAX_K, True), (ops.MAX_K + 1, False)])
def test_longer_sums_leave_the_compiled_path(k, compiled, monkeypatch):
    plain: list[str] = []
    forms = [
        "matmul_scaled",
        "matmul_grad_weight",
        "conv2d_scaled",
        "conv2d_grad_input_scaled",
        "conv2d_grad_weight_scaled",
    ]
    for name in forms:
        original = getattr(ops.Backend, name)

        def watch(*args, _name=name, _original=original, **options):
            plain.append(_name)
            return _original(*args, **options)

        monkeypatch.setattr(ops.Backend, name, watch)
    extremes(k, (1, 1))
    assert plain == ([] if compiled else forms)


def args(geometry: ConvGeometry) -> tuple[Any, ...]:
    return geometry.stride, geometry.padding, geometry.dilation, geometry.groups


def pooled(budget: torch.Tensor, steps: Epilogue | None) -> torch.Tensor:
    """A maximum is as far off as the farthest of its window."""
    return budget if steps is None or steps.pool == 1 else F.max_pool2d(budget, steps.pool)


def rounding(terms: int) -> float:
    """gamma_n = n*u / (1 - n*u): what n float32 roundings change at most, whatever the order of a sum."""
    return terms * 2**-24 / (1 - terms * 2**-24)


UNGROUPED = [case for case in (*CONVS, *WIDTHS) if case[-1].groups == 1]
PLAIN = [
    pytest.param(case, impl, id=f"{case}-{impl}") for case in (CONVS[2], CONVS[5]) for impl in ("torch", "reference")
]


@pytest.mark.parametrize(("case", "impl"), [*((case, "torch") for case in UNGROUPED), *PLAIN], ids=str)
def test_the_float_convolution_and_its_weight_gradient(case, impl, monkeypatch):
    c, o, kernel, size, geometry = case
    monkeypatch.setattr(conv, "CHUNK_BYTES", 2000)
    x, w = torch.randn(3, c, *size), torch.randn(o, c // geometry.groups, *kernel)
    bias = torch.randn(o)
    for steps, b in ((None, None), *((steps, bias) for steps in STEPS)):
        exact_b = None if b is None else b.double()
        if steps is not None and min(geometry.output_size(*size, kernel)) < steps.pool:
            continue
        y, mask = ops.backend(impl, "cpu").float_conv2d(x, w, b, geometry, steps)
        weight = w.double().requires_grad_()
        exact = steps_of(F.conv2d(x.double(), weight, exact_b, *args(geometry)), steps)
        whole = F.conv2d(x.double().abs(), w.double().abs(), None if b is None else exact_b.abs(), *args(geometry))
        # K products, their sums and the bias: K + 1 roundings a term.
        budget = pooled(whole * rounding(w[0].numel() + 1), steps)
        assert ((y.double() - exact).abs() <= budget).all()

        g = torch.randn(y.shape)
        exact.backward(g.double())
        sparse = g if mask is None else ops.backend(impl, "cpu").mask_gradient(g, mask, steps)
        dw = ops.backend(impl, "cpu").float_conv2d_grad_weight(x, (sparse, mask), steps, w.shape, geometry)
        terms = whole.shape[0] * whole.shape[2] * whole.shape[3]
        spread = steps is not None and steps.pool > 1
        dense = (
            ops.backend("reference", "cpu").spread(sparse, mask, steps, tuple(whole.shape[2:])) if spread else sparse
        )
        sums = torch.nn.grad.conv2d_weight(x.double().abs(), w.shape, dense.double().abs(), *args(geometry))
        assert dw.shape == w.shape
        assert ((dw.double() - weight.grad).abs() <= sums * rounding(terms)).all()
