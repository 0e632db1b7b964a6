import importlib.util

import pytest
import torch
import torch.nn.functional as F

from octo_exp.base.errors import UserError
from octo_exp.kernels import int8, ops
from octo_exp.kernels.cpu import tiles
from octo_exp.kernels.finish import Finish
from octo_exp.kernels.ops import ConvGeometry

HAS_TRITON = importlib.util.find_spec("triton") is not None
FAST = ["torch", pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed"))]


def codes(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (7, 63, 1), (1, 7, 63), (63, 65, 7), (33, 64, 16)])
def test_matmul_equals_the_oracle(impl, m, k, n):
    a, b = codes(m, k), codes(k, n, seed=1)
    expected = ops.backend("reference", "cpu").int8_matmul(a, b)
    for left, right in ((a, b), (a.t().contiguous().t(), b), (a, b.t().contiguous().t())):
        out = ops.backend(impl, "cpu").int8_matmul(left, right)
        assert out.dtype == torch.int32
        assert torch.equal(out, expected)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 7, 5), (5, 7, 1), (5, 1, 7), (1, 7, 1), (1, 1, 1)])
def test_a_dimension_of_size_one_may_have_any_stride(impl, m, k, n):
    # [M, 1].t() is [1, M] with strides (1, 1): grad_weight of a layer with one output. oneDNN returned garbage.
    a, b = codes(m, k), codes(k, n, seed=1)
    expected = ops.backend("reference", "cpu").int8_matmul(a, b)
    for odd in (1, 3):
        left = a.as_strided(a.shape, (odd if m == 1 else k, odd if k == 1 else 1))
        right = b.as_strided(b.shape, (odd if k == 1 else n, odd if n == 1 else 1))
        assert torch.equal(ops.backend(impl, "cpu").int8_matmul(left, right), expected)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("pair", [(127, 127), (-127, 127), (-128, -127), (-128, 127), (-128, -128)])
def test_extreme_codes_with_k_4608_are_exact(impl, pair):
    a = torch.full((3, 4608), pair[0], dtype=torch.int8)
    b = torch.full((4608, 2), pair[1], dtype=torch.int8)
    out = ops.backend(impl, "cpu").int8_matmul(a, b)
    assert torch.equal(out.long(), torch.full((3, 2), 4608 * pair[0] * pair[1]))


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("pair", [(127, 127), (-128, -127), (-128, -128), (-128, 127)])
def test_sums_past_int32_are_split(impl, pair):
    k = 262_144
    a = torch.full((2, k), pair[0], dtype=torch.int8)
    b = torch.full((k, 3), pair[1], dtype=torch.int8)
    out = ops.backend(impl, "cpu").int8_matmul(a, b)
    assert out.dtype == torch.int64
    assert torch.equal(out, torch.full((2, 3), k * pair[0] * pair[1]))


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_depthwise_sums_past_int32_are_exact(impl):
    x = torch.full((1, 2, 363, 363), -128, dtype=torch.int8)
    out = ops.backend(impl, "cpu").int8_conv2d_grad_weight(x, x, (1, 1), ConvGeometry(groups=2))
    assert out.flatten().tolist() == [363 * 363 * 128 * 128] * 2


def test_without_the_split_the_sum_wraps(monkeypatch):
    monkeypatch.setattr(int8, "MAX_K", 2**31)
    a = torch.full((1, 262_144), -128, dtype=torch.int8)
    out = ops.backend("torch", "cpu").int8_matmul(a, a.t())
    assert out.item() != 262_144 * 128 * 128


def test_max_k_is_the_largest_safe_sum():
    assert ops.MAX_K * 128 * 128 <= 2**31 - 1 < (ops.MAX_K + 1) * 128 * 128


def test_inexact_int_mm_is_replaced_by_an_exact_product(monkeypatch):
    monkeypatch.setattr(int8, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(-(2**15), 2**15 - 1))
    int8.int_mm_is_exact.cache_clear()
    int8.int_mm_pays.cache_clear()
    try:
        assert not int8.int_mm_is_exact("cpu")
        assert not int8.int_mm_pays("cpu")
        a, b = codes(9, 3000), codes(3000, 5, seed=1)
        assert torch.equal(int8.matmul(a, b).long(), (a.long() @ b.long()))
        # An odd sum past 2^24, which one float32 could not hold.
        top = torch.full((1, 3001), 127, dtype=torch.int8)
        assert int8.matmul(top, top.t()).item() == 3001 * 127 * 127
    finally:
        monkeypatch.undo()
        int8.int_mm_is_exact.cache_clear()
        int8.int_mm_pays.cache_clear()
    assert int8.int_mm_is_exact("cpu")


@pytest.mark.parametrize("pays", [True, False])
def test_both_products_are_the_same_integers(monkeypatch, pays):
    monkeypatch.setattr(int8, "int_mm_pays", lambda device_type: pays)
    a, b = codes(7, 3001), codes(3001, 5, seed=1)
    assert torch.equal(int8.matmul(a, b).long(), a.long() @ b.long())


@pytest.mark.parametrize(
    ("exact", "pays", "expected"),
    [
        (True, True, "int8 (torch._int_mm)"),
        (True, False, "float32, exact (no int8 instruction on this cpu)"),
        (False, False, "float32, exact (torch._int_mm is not exact on this cpu)"),
    ],
)
def test_what_multiplies_here_has_a_name(monkeypatch, exact, pays, expected):
    monkeypatch.setattr(int8, "int_mm_is_exact", lambda device_type: exact)
    monkeypatch.setattr(int8, "int_mm_pays", lambda device_type: pays)
    monkeypatch.setattr(tiles, "is_available", lambda: False)
    assert ops.backend("torch", "cpu").multiplier == expected
    assert ops.backend("reference", "cpu").multiplier == "float64, exact"


class Cpu:
    """What some version of torch.cpu tells."""

    def __init__(self, **told):
        for name, value in told.items():
            setattr(self, name, lambda value=value: value)


@pytest.mark.parametrize(
    ("machine", "told", "has"),
    [
        ("x86_64", {"get_capabilities": {"avx512_vnni": True}}, True),
        ("x86_64", {"get_capabilities": {"avx2": True, "avx_vnni": False}}, False),
        ("AMD64", {"_is_vnni_supported": False}, False),
        ("x86_64", {"_is_avx512_vnni_supported": True}, True),
        ("x86_64", {}, True),
        ("aarch64", {"get_capabilities": {}}, True),
    ],
)
def test_the_processor_says_whether_it_multiplies_int8(monkeypatch, machine, told, has):
    monkeypatch.setattr(int8.platform, "machine", lambda: machine)
    assert int8._has_int8_instruction(Cpu(**told)) == has


CONVS = [
    # channels, filters, kernel, size, geometry
    (3, 4, (3, 3), (7, 7), ConvGeometry(padding=(1, 1))),
    (1, 5, (5, 5), (9, 8), ConvGeometry()),
    (4, 6, (3, 3), (8, 9), ConvGeometry(stride=(2, 2), padding=(1, 1))),
    (4, 6, (3, 3), (9, 9), ConvGeometry(stride=(3, 2), padding=(2, 1))),
    (4, 6, (3, 2), (10, 9), ConvGeometry(dilation=(2, 3), padding=(2, 0))),
    (6, 4, (3, 3), (7, 7), ConvGeometry(groups=2, padding=(1, 1))),
    (4, 4, (3, 3), (7, 6), ConvGeometry(groups=4, padding=(1, 1), stride=(2, 2))),
    (3, 6, (3, 3), (7, 7), ConvGeometry(groups=3, dilation=(2, 2), padding=(2, 2))),
    (4, 8, (3, 3), (9, 8), ConvGeometry(groups=4, stride=(2, 1), dilation=(1, 2), padding=(1, 2))),
    (3, 1, (3, 3), (7, 7), ConvGeometry(padding=(1, 1))),
    (4, 2, (3, 3), (7, 7), ConvGeometry(groups=2)),
    (1, 3, (1, 1), (5, 5), ConvGeometry()),
    (2, 3, (1, 1), (5, 5), ConvGeometry(stride=(2, 2))),
    (2, 3, (1, 1), (4, 4), ConvGeometry(padding=(2, 2))),
    (2, 3, (2, 2), (5, 5), ConvGeometry(stride=(4, 4), padding=(3, 3))),
    (5, 7, (4, 4), (4, 4), ConvGeometry()),
]


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("pad_value", [0, -77])
def test_convolution_and_its_gradients_equal_the_oracle(impl, case, pad_value):
    c, o, kernel, size, geometry = case
    x, w = codes(2, c, *size), codes(o, c // geometry.groups, *kernel, seed=1)
    g = codes(2, o, *geometry.output_size(*size, kernel), seed=2)
    results = {
        name: (
            ops.backend(name, "cpu").int8_conv2d(x, w, geometry, pad_value=pad_value),
            ops.backend(name, "cpu").int8_conv2d_grad_input(g, w, size, geometry),
            ops.backend(name, "cpu").int8_conv2d_grad_weight(x, g, kernel, geometry, pad_value=pad_value),
        )
        for name in ("reference", impl)
    }
    for fast, oracle in zip(results[impl], results["reference"], strict=True):
        assert torch.equal(fast.long(), oracle.long())


def test_the_oracle_is_autograd_in_float64():
    x, w = codes(2, 4, 6, 7).double().requires_grad_(), codes(6, 2, 3, 3, seed=1).double().requires_grad_()
    geometry = ConvGeometry(stride=(2, 1), padding=(1, 1), groups=2)
    out = F.conv2d(x, w, None, (2, 1), (1, 1), 1, 2)
    g = codes(*out.shape, seed=2)
    out.backward(g.double())
    xq, wq = x.detach().to(torch.int8), w.detach().to(torch.int8)
    assert torch.equal(ops.backend("reference", "cpu").int8_conv2d(xq, wq, geometry).double(), out)
    grad_input = ops.backend("reference", "cpu").int8_conv2d_grad_input(g, wq, (6, 7), geometry)
    assert torch.equal(grad_input.double(), x.grad)
    grad_weight = ops.backend("reference", "cpu").int8_conv2d_grad_weight(xq, g, (3, 3), geometry)
    assert torch.equal(grad_weight.double(), w.grad)


def test_pad_value_may_be_a_tensor():
    x, w = codes(1, 2, 5, 5), codes(3, 2, 3, 3, seed=1)
    geometry = ConvGeometry(padding=(1, 1))
    out = ops.backend("torch", "cpu").int8_conv2d(x, w, geometry, pad_value=torch.tensor(-5))
    assert torch.equal(out, ops.backend("reference", "cpu").int8_conv2d(x, w, geometry, pad_value=-5))


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_scaled_product_is_the_product_scaled(impl):
    a, b = codes(17, 40), codes(40, 9, seed=1)
    scale, offset = torch.rand(9) * 1e-3, torch.randn(9)
    out, mask = ops.backend(impl, "cpu").matmul_scaled(a, b, Finish(scale, offset))
    assert mask is None
    exact = (a.double() @ b.double()) * scale.double() + offset.double()
    # Two float32 roundings, each relative 2^-24 of the larger of product and sum.
    budget = 2.0**-23 * ((a.double() @ b.double()).abs() * scale + exact.abs() + offset.abs())
    assert out.dtype == torch.float32
    assert ((out.double() - exact).abs() <= budget).all()


def test_refusals_name_the_remedy(monkeypatch):
    with pytest.raises(TypeError, match="int8"):
        ops.backend("torch", "cpu").int8_matmul(torch.ones(2, 2), codes(2, 2))
    with pytest.raises(ValueError, match="shapes"):
        ops.backend("torch", "cpu").int8_matmul(codes(2, 3), codes(2, 3))
    with pytest.raises(UserError, match="auto, reference, torch, triton"):
        ops.resolve_impl("cuda", "cpu")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match=r"pip install|TRITON_INTERPRET"):
        ops.resolve_impl("triton", "cpu")
    assert ops.resolve_impl("auto", "cpu") == "torch"
    if HAS_TRITON:
        assert ops.resolve_impl("auto", "cuda") == "triton"
    else:
        with pytest.raises(UserError, match="choose kernel=torch"):
            ops.resolve_impl("auto", "cuda")


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_a_convolution_too_long_for_int32_is_split(impl):
    x, w = (torch.full(shape, -128, dtype=torch.int8) for shape in ((1, 40_000, 2, 2), (1, 40_000, 2, 2)))
    out = ops.backend(impl, "cpu").int8_conv2d(x, w, ConvGeometry())
    assert out.dtype == torch.int64
    assert out.item() == 160_000 * 128 * 128
