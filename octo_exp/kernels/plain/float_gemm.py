"""Float products whose sums have one order, whatever the number of threads, for layers that stay float.

MKL splits even small products by threads: on AMD's processors [10, 40] @ [40, 84] has other last bits on two of them.
MKL_CBWR is no remedy: its STRICT mode, the one that does not depend on threads, is for Intel's processors; on others
MKL falls back to AUTO, which does. On one thread there is nothing to split.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread; changing the number and back takes less than a microsecond."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [..., M, K] @ b [K, N], of one float dtype -> [..., M, N]; on a CPU in an order that knows no threads."""
    if a.device.type != "cpu":
        return a @ b
    with one_thread():
        return a @ b


def sum_products(a: Tensor, b: Tensor) -> Tensor:
    """a [T, M, K], b [T, K, N] float32 on a CPU -> the sum of their products, [M, N].

    Of several products each is computed whole by one thread; a single one would be split.
    """
    return matmul(a[0], b[0]) if len(a) == 1 else torch.bmm(a, b).sum(0)
