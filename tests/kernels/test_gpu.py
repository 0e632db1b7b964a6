"""On a CUDA device every implementation gives the oracle's integers."""

import pytest
import torch

from octo_exp.kernels import api
from tests.kernels.test_integers import CONVS, codes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (7, 63, 1), (63, 65, 7), (300, 4608, 129)])
def test_matmul_on_the_device(impl, m, k, n):
    a, b = codes(m, k).cuda(), codes(k, n, seed=1).cuda()
    out = api.int8_matmul(a, b, impl=impl)
    assert out.dtype == torch.int32
    assert torch.equal(out, api.int8_matmul(a, b, impl="reference"))


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_convolutions_on_the_device(impl, case):
    c, o, kernel, size, geometry = case
    x, w = codes(2, c, *size).cuda(), codes(o, c // geometry.groups, *kernel, seed=1).cuda()
    g = codes(2, o, *geometry.output_size(*size, kernel), seed=2).cuda()
    zero = torch.tensor(-9, device="cuda")
    for name, args, options in (
        ("int8_conv2d", (x, w, geometry), {"pad_value": zero}),
        ("int8_conv2d_grad_input", (g, w, size, geometry), {}),
        ("int8_conv2d_grad_weight", (x, g, kernel, geometry), {"pad_value": zero}),
    ):
        op = getattr(api, name)
        assert torch.equal(op(*args, **options, impl=impl).long(), op(*args, **options, impl="reference").long()), name


def test_auto_is_triton_on_the_device():
    assert api.resolve_impl("auto", "cuda") == "triton"
