"""On a CUDA device every implementation gives the oracle's integers, and the fused kernels the plain forms' floats.

Floats: torch's own kernels may round a product and a sum once where Triton's round twice; the budget is one unit in the
last place of the product, plus one of the result. What has no offset is equal bit for bit.
"""

import pytest
import torch

from octo_exp.kernels import ops
from octo_exp.kernels.finish import Finish, Limits
from octo_exp.kernels.ops import ConvGeometry
from octo_exp.kernels.plain import philox
from octo_exp.kernels.triton import autotune
from octo_exp.workload import Epilogue
from tests.kernels.test_integers import CONVS, codes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ULP = 2.0**-23


@pytest.fixture(autouse=True)
def _own_blocks(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autotune._cache.cache_clear()
    yield
    autotune._cache.cache_clear()


def on_device(*shape: int, seed: int = 0) -> torch.Tensor:
    return codes(*shape, seed=seed).cuda()


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (7, 63, 1), (63, 65, 7), (300, 4608, 129)])
def test_matmul_on_the_device(impl, m, k, n):
    a, b = on_device(m, k), on_device(k, n, seed=1)
    out = ops.backend(impl, "cuda").int8_matmul(a, b)
    assert out.dtype == torch.int32
    assert torch.equal(out, ops.backend("reference", "cuda").int8_matmul(a, b))


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_convolutions_on_the_device(impl, case):
    c, o, kernel, size, geometry = case
    x, w = on_device(2, c, *size), on_device(o, c // geometry.groups, *kernel, seed=1)
    g = on_device(2, o, *geometry.output_size(*size, kernel), seed=2)
    zero = torch.tensor(-9, device="cuda")
    for name, args, options in (
        ("int8_conv2d", (x, w, geometry), {"pad_value": zero}),
        ("int8_conv2d_grad_input", (g, w, size, geometry), {}),
        ("int8_conv2d_grad_weight", (x, g, kernel, geometry), {"pad_value": zero}),
    ):
        out, oracle = (getattr(ops.backend(i, "cuda"), name)(*args, **options) for i in (impl, "reference"))
        assert torch.equal(out.long(), oracle.long()), name


def test_auto_is_triton_on_the_device():
    assert ops.resolve_impl("auto", "cuda") == "triton"


def assert_within_budget(
    out: torch.Tensor, acc: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None
) -> None:
    """out must be acc*scale + offset: exact integers, one rounding of the product, one of the sum."""
    product = acc.double() * scale.double()
    if offset is None:
        assert torch.equal(out, acc.float() * scale)
        return
    exact = product + offset.double()
    # float32(acc) is rounded too where it passes 2^24: half an ulp of the product more.
    assert ((out.double() - exact).abs() <= ULP * (1.5 * product.abs() + exact.abs())).all()


# Layers of AlexNet, VGG-16 and ResNet-18 at 128 images, smaller where the oracle in float64 would not fit.
LAYERS = [
    (32, 3, 64, (11, 11), (224, 224), ConvGeometry(stride=(4, 4), padding=(2, 2))),
    (128, 192, 384, (3, 3), (13, 13), ConvGeometry(padding=(1, 1))),
    (32, 64, 64, (3, 3), (56, 56), ConvGeometry(padding=(1, 1))),
    (64, 64, 128, (3, 3), (56, 56), ConvGeometry(stride=(2, 2), padding=(1, 1))),
    (64, 256, 512, (1, 1), (14, 14), ConvGeometry(stride=(2, 2))),
    (63, 65, 67, (3, 3), (17, 15), ConvGeometry(dilation=(2, 2), padding=(2, 2))),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_fused_convolutions_on_the_device(layer):
    images, c, o, kernel, size, geometry = layer
    out_size = geometry.output_size(*size, kernel)
    x, w, g = on_device(images, c, *size), on_device(o, c, *kernel, seed=1), on_device(images, o, *out_size, seed=2)
    scale, pad = torch.rand(o, 1, 1, device="cuda") * 1e-3, torch.tensor(-9, device="cuda")
    acc = ops.backend("reference", "cuda").int8_conv2d(x, w, geometry, pad_value=pad)
    for offset in (None, torch.randn(o, 1, 1, device="cuda"), torch.randn(o, *out_size, device="cuda")):
        flat = offset if offset is None or offset.shape[1] > 1 else offset.flatten()
        finish = Finish(scale.flatten(), flat)
        y, _ = ops.backend("triton", "cuda").conv2d_scaled(x, w, geometry, pad, finish)
        assert_within_budget(y, acc, scale, offset)
        finish = finish._replace(steps=Epilogue(relu=True))
        active, mask = ops.backend("triton", "cuda").conv2d_scaled(x, w, geometry, pad, finish)
        assert torch.equal(active, y.relu())
        passed = ops.backend("triton", "cuda").mask_gradient(torch.ones_like(y), mask, Epilogue(relu=True))
        assert torch.equal(passed, (y > 0).float())
    single = scale.flatten()[0]
    dx = ops.backend("triton", "cuda").conv2d_grad_input_scaled(g, w, size, geometry, scale=single)
    assert_within_budget(
        dx, ops.backend("reference", "cuda").int8_conv2d_grad_input(g, w, size, geometry), single, None
    )
    acc = ops.backend("reference", "cuda").int8_conv2d_grad_weight(x, g, kernel, geometry, pad_value=pad)
    for offset in (None, torch.randn(o, device="cuda")):
        dw = ops.backend("triton", "cuda").conv2d_grad_weight_scaled(
            x, g, kernel, geometry, pad, Finish(single, offset)
        )
        assert_within_budget(dw, acc, single, None if offset is None else offset.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize(("m", "k", "n"), [(128, 9216, 4096), (128, 4096, 1000), (1, 63, 7), (257, 65, 129)])
def test_fused_products_on_the_device(m, k, n):
    a, b, scale = on_device(m, k), on_device(n, k, seed=1).t(), torch.rand(n, device="cuda") * 1e-3
    for offset in (None, torch.randn(n, device="cuda")):
        y, _ = ops.backend("triton", "cuda").matmul_scaled(a, b, Finish(scale, offset))
        assert_within_budget(y, ops.backend("reference", "cuda").int8_matmul(a, b), scale, offset)


@pytest.mark.parametrize("blocks", autotune.TILES, ids=str)
def test_blocks_change_no_bit_on_the_device(monkeypatch, blocks):
    from octo_exp.kernels.triton import conv, gemm

    for module in (conv, gemm):
        monkeypatch.setattr(module, "choose", lambda *args: blocks)
    test_fused_convolutions_on_the_device(LAYERS[-1])
    test_fused_products_on_the_device(257, 65, 129)


@pytest.mark.parametrize("seed", [None, 0, 2**63 - 1])
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_quantize_gives_the_cpus_codes_on_the_device(impl, seed):
    t = torch.randn(64, 3, 57, 57)
    limits = Limits(-128, 127, seed=seed)
    for layout in (t, t.contiguous(memory_format=torch.channels_last), t[:, :, ::2]):
        for scale in (torch.tensor(0.02), torch.rand(64, 1, 1, 1) + 0.01):
            expected = ops.backend("reference", "cpu").quantize(layout, scale, torch.tensor(3.0), limits)
            out = ops.backend(impl, "cuda").quantize(layout.cuda(), scale.cuda(), torch.tensor(3.0).cuda(), limits)
            assert torch.equal(out.cpu(), expected)


def test_noise_is_the_cpus_on_the_device():
    assert torch.equal(philox.uniform(7, 1000, "cuda", 2**32 - 500).cpu(), philox.uniform(7, 1000, "cpu", 2**32 - 500))


def test_blocks_are_timed_once_and_kept_on_the_device(tmp_path):
    a, b = on_device(300, 200), on_device(200, 100, seed=1)
    ops.backend("triton", "cuda").int8_matmul(a, b)
    path = tmp_path / "octo_exp" / "triton_blocks.json"
    written = path.read_text()
    assert "gemm|512x100x200" in written
    autotune._cache.cache_clear()
    assert torch.equal(
        ops.backend("triton", "cuda").int8_matmul(a, b), ops.backend("reference", "cuda").int8_matmul(a, b)
    )
    assert path.read_text() == written
