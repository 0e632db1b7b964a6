"""The Triton kernels, through its interpreter where there is no GPU, against the plain torch forms: bit for bit."""

import inspect

import pytest
import torch

pytest.importorskip("triton")

from octo_exp.kernels import ops
from octo_exp.kernels.backend import scale_accumulator
from octo_exp.kernels.finish import Finish
from octo_exp.kernels.ops import ConvGeometry
from octo_exp.kernels.triton import conv, gemm
from octo_exp.kernels.triton.autotune import TILES
from octo_exp.kernels.triton.backend import Triton
from octo_exp.workload import Epilogue
from tests.kernels.test_integers import CONVS, codes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [1, 7, 16, 63, 65]
STEPS = [None, Epilogue(relu=True), Epilogue(relu=True, pool=2), Epilogue(relu=False, pool=2)]
UNSCALED = torch.tensor(1.0, device=DEVICE)


def on_device(*shape: int, seed: int = 0) -> torch.Tensor:
    return codes(*shape, seed=seed).to(DEVICE)


def both(op, *args, **options):
    """Return `op` by triton; it must equal the plain form in value, type and layout."""
    plain, fast = (getattr(ops.backend(impl, DEVICE), op)(*args, **options) for impl in ("reference", "triton"))
    pairs = zip(plain, fast, strict=True) if isinstance(plain, tuple) else [(plain, fast)]
    for expected, out in pairs:
        assert (expected is None) == (out is None)
        if expected is not None:
            assert out.dtype == expected.dtype
            assert torch.equal(out, expected)
    return fast


def poison(monkeypatch):
    """Fill what is allocated without being written, so that an element the kernel forgets shows."""

    def filled(function):
        def allocate(*args, **options):
            out = function(*args, **options)
            return out.fill_(float("nan") if out.is_floating_point() else 77)

        return allocate

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))


def test_triton_methods_have_the_signatures_of_the_plain_ones():
    own = [name for name, value in vars(Triton).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert {"quantize", "matmul_scaled", "conv2d_scaled", "conv2d_grad_weight_scaled"} <= set(own)
    for name in own:
        assert inspect.signature(getattr(Triton, name)) == inspect.signature(getattr(ops.Backend, name)), name


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (7, 63, 1), (1, 7, 63), (63, 65, 7), (65, 16, 65), (16, 130, 16)])
def test_triton_product_is_the_plain_one(monkeypatch, m, k, n):
    poison(monkeypatch)
    a, b = on_device(m, k), on_device(k, n, seed=1)
    scale, offset = torch.rand(n).to(DEVICE), torch.randn(n).to(DEVICE) * 1000
    for left, right in ((a, b), (a.t().contiguous().t(), b.t().contiguous().t())):
        exact = both("matmul_scaled", left, right, Finish(UNSCALED))[0]
        # 130 products of at most 2^14 are below 2^24: float32 holds each sum.
        assert torch.equal(exact, ops.backend("reference", DEVICE).int8_matmul(a, b).float())
        for steps in (*STEPS[:2], Epilogue(relu=False)):
            both("matmul_scaled", left, right, Finish(scale, offset, steps))
            both("matmul_scaled", left, right, Finish(scale[0], steps=steps))
    g = on_device(k, m, seed=2)
    for shift in (None, torch.randn(m).to(DEVICE)):
        both("matmul_grad_weight", g, b, Finish(scale[0], shift))


def test_triton_product_takes_an_offset_a_row():
    a, b, offset = on_device(21, 9), on_device(9, 5, seed=1), torch.randn(7, 5).to(DEVICE)
    out = gemm.multiply(a, b, Finish(UNSCALED, offset))
    assert torch.equal(out, ops.backend("reference", DEVICE).int8_matmul(a, b) + offset.repeat(3, 1))


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("length", [1, 65])
def test_triton_scales_rows(monkeypatch, rows, length):
    poison(monkeypatch)
    acc = torch.randint(-(2**31), 2**31, (rows, length), dtype=torch.int32).to(DEVICE)
    for scale in (UNSCALED / 3, torch.rand(rows).to(DEVICE)):
        for offset in (None, torch.randn(rows).to(DEVICE)):
            expected = acc * scale.reshape(-1, 1) + (0 if offset is None else offset.unsqueeze(1))
            assert torch.equal(ops.backend("triton", DEVICE).scale_rows(acc, scale, offset), expected)


def convolve(case, pad_value, *, images: int = 2, steps: Epilogue | None = None, scaled: bool = True):
    """Check a convolution and both its gradients; return them by triton."""
    c, o, kernel, size, geometry = case
    out_size = geometry.output_size(*size, kernel)
    x, w, g = on_device(images, c, *size), on_device(o, c, *kernel, seed=1), on_device(images, o, *out_size, seed=2)
    x, g = x.contiguous(memory_format=torch.channels_last), g.contiguous(memory_format=torch.channels_last)
    scale, offset = torch.rand(o).to(DEVICE), torch.randn(o).to(DEVICE) * 1000
    border = torch.randn(o, *out_size).to(DEVICE) * 1000
    results = []
    for factor, shift in ((scale, border), (scale[0], offset)) if scaled else ((UNSCALED, None),):
        y = both("conv2d_scaled", x, w, geometry, pad_value, Finish(factor, shift, steps))[0]
        single = factor.reshape(-1)[0]
        dx = both("conv2d_grad_input_scaled", g, w, size, geometry, scale=single)
        shift = shift if shift is None or shift.dim() == 1 else None
        dw = both("conv2d_grad_weight_scaled", x, g, kernel, geometry, pad_value, Finish(single, shift))
        results = [y, dx, dw]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in results)
    return results


ONE_GROUP = [case for case in CONVS if case[4].groups == 1]


@pytest.mark.parametrize("case", ONE_GROUP, ids=str)
def test_triton_convolutions_are_the_plain_ones(monkeypatch, case):
    poison(monkeypatch)
    convolve(case, torch.tensor(-77, device=DEVICE))


@pytest.mark.parametrize("steps", STEPS[1:], ids=str)
def test_triton_convolution_is_activated_and_masked(steps):
    convolve((7, 9, (3, 3), (6, 7), ConvGeometry(padding=(1, 1))), 3, steps=steps)


# Channels, filters, kernel, size, geometry: each of the sizes as channels, as filters and as positions.
WIDE = [
    (1, 65, (3, 3), (1, 7), ConvGeometry(padding=(1, 1))),
    (65, 1, (1, 1), (7, 9), ConvGeometry()),
    (16, 63, (3, 3), (4, 4), ConvGeometry(padding=(1, 1), stride=(2, 2))),
    (63, 16, (2, 3), (5, 13), ConvGeometry(padding=(2, 4), dilation=(2, 3))),
    (7, 7, (3, 3), (3, 3), ConvGeometry()),
]


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_triton_convolutions_of_odd_sizes_have_exact_sums(case):
    x, kernel, geometry = on_device(2, case[0], *case[3]), case[2], case[4]
    g, w = on_device(2, case[1], *geometry.output_size(*case[3], kernel), seed=2), on_device(case[1], case[0], *kernel)
    # Sums of fewer than 1,024 products: float32 holds them, so they must be the oracle's integers.
    assert max(w[0].numel(), w.numel() // w.shape[1], g[:, 0].numel()) < 1024
    y, dx, dw = convolve(case, 0, scaled=False)
    oracle = ops.backend("reference", DEVICE)
    w = on_device(case[1], case[0], *kernel, seed=1)
    assert torch.equal(y, oracle.int8_conv2d(x, w, geometry).float())
    assert torch.equal(dx, oracle.int8_conv2d_grad_input(g, w, case[3], geometry).float())
    assert torch.equal(dw, oracle.int8_conv2d_grad_weight(x, g, kernel, geometry).float())


@pytest.mark.parametrize("images", [1, 7, 16, 63, 65])
def test_triton_convolutions_of_any_batch(images):
    convolve((3, 2, (2, 2), (2, 3), ConvGeometry(stride=(1, 2), padding=(1, 0))), -5, images=images)


@pytest.mark.parametrize("blocks", [*TILES, *conv.SPLIT_TILES], ids=str)
def test_triton_blocks_change_no_integer(monkeypatch, blocks):
    poison(monkeypatch)
    chosen = []

    def choose(kernel, shape, device, launch, candidates=TILES):
        chosen.append(kernel)
        # Autotuning launches a kernel again and again on the same output.
        launch(blocks)
        return blocks

    for module in (gemm, conv):
        monkeypatch.setattr(module, "choose", choose)
    convolve((7, 70, (3, 3), (9, 8), ConvGeometry(padding=(1, 1), stride=(1, 2))), 5, scaled=False)
    a, b = on_device(70, 140), on_device(140, 35, seed=1)
    assert torch.equal(
        ops.backend("triton", DEVICE).int8_matmul(a, b), ops.backend("reference", DEVICE).int8_matmul(a, b).int()
    )
    assert set(chosen) == {"conv", "conv_grad_input", "conv_grad_weight", "gemm"}


def test_triton_sums_of_extreme_codes_are_exact():
    x = torch.full((1, 40, 12, 12), -128, dtype=torch.int8, device=DEVICE)
    w = torch.full((2, 40, 3, 3), -128, dtype=torch.int8, device=DEVICE)
    y = conv.conv2d(x, w, ConvGeometry(), 0, Finish(UNSCALED))
    assert (y == 40 * 9 * 2**14).all()
    dw = conv.conv2d_grad_weight(x, x, (1, 1), ConvGeometry(), 0)
    assert (dw == 144 * 2**14).all()


def test_triton_leaves_groups_to_the_plain_form_and_floats_to_torch():
    case = (6, 4, (3, 3), (7, 7), ConvGeometry(groups=2, padding=(1, 1)))
    x, w = on_device(2, 6, 7, 7), on_device(4, 3, 3, 3, seed=1)
    both("conv2d_scaled", x, w, case[4], -3, Finish(UNSCALED / 7, steps=STEPS[1]))
    x, w, bias = torch.randn(2, 3, 7, 7).to(DEVICE), torch.randn(5, 3, 3, 3).to(DEVICE), torch.randn(5).to(DEVICE)
    for steps in STEPS:
        both("float_conv2d", x, w, bias, ConvGeometry(stride=(2, 2), padding=(1, 1)), steps)


def test_triton_lets_a_nan_through_the_relu():
    offset = torch.tensor([float("nan"), -1.0, 1.0], device=DEVICE)
    a, b = on_device(4, 8) * 0, on_device(8, 3) * 0
    y, mask = ops.backend("triton", DEVICE).matmul_scaled(a, b, Finish(UNSCALED, offset, STEPS[1]))
    expected, expected_mask = ops.backend("reference", DEVICE).activate(
        scale_accumulator(a.int() @ b.int(), UNSCALED, offset), STEPS[1]
    )
    assert torch.equal(y.nan_to_num(5.0), expected.nan_to_num(5.0))
    assert torch.equal(mask, expected_mask)
