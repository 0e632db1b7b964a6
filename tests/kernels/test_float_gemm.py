import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from octo_exp.kernels.plain import float_gemm

# Products per number of threads at the time.
Seen = list[tuple[str, int]]


class Watch(TorchDispatchMode):
    """Notes every matrix product and the threads that it may use."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm"):
            self.seen.append((name, torch.get_num_threads()))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _three_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize("shape", [(10, 40), (2, 3, 7)])
def test_a_product_is_computed_on_one_thread(shape):
    a, b = torch.randn(shape), torch.randn(shape[-1], 5)
    with Watch() as watch:
        out = float_gemm.matmul(a, b)
    assert watch.seen == [("mm", 1)]
    assert torch.get_num_threads() == 3
    torch.testing.assert_close(out, (a.double() @ b.double()).float())


@pytest.mark.usefixtures("_three_threads")
def test_the_number_of_threads_survives_an_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        float_gemm.matmul(torch.ones(2, 3), torch.ones(2, 3))
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize(("count", "expected"), [(1, ("mm", 1)), (2, ("bmm", 3)), (5, ("bmm", 3))])
def test_a_single_product_of_a_sum_is_not_left_to_threads(count, expected):
    a, b = torch.randn(count, 4, 9), torch.randn(count, 9, 6)
    with Watch() as watch:
        out = float_gemm.sum_products(a, b)
    assert watch.seen == [expected]
    torch.testing.assert_close(out, (a.double() @ b.double()).sum(0).float())
