"""GEMMs with the compiled loops before and behind them: im2col, epilogue, and convolutions some images at a time.

A convolution goes through as many images at a time as CHUNK_BYTES allow. Neither the columns nor the accumulators of
the whole batch ever exist: on fresh memory the page faults alone would cost more than the GEMM. Int8 operands give the
bits of the plain torch forms; float operands (layers that stay fp32) go the same way.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from octo_exp.kernels import int8
from octo_exp.kernels.cpu import loops, tiles
from octo_exp.kernels.cpu.compiled import OUTER, njit, prange
from octo_exp.kernels.cpu.loops import array, use_torch_threads
from octo_exp.kernels.finish import Finish, Masked, Pad
from octo_exp.kernels.int8 import MAX_K, ConvGeometry, channels_last_rows, empty_channels_last
from octo_exp.kernels.plain import float_gemm
from octo_exp.workload import Epilogue

# Columns and 4-byte accumulators or gradients beside them that exist at a time.
CHUNK_BYTES = 8 * 2**20


def per_channel(v: Tensor, channels: int) -> np.ndarray:
    """Scalar or [C] -> [C] float32, contiguous."""
    return array(v.float().reshape(-1).expand(channels).contiguous())


def offset_rows(offset: Tensor | None, channels: int) -> np.ndarray:
    """None, [C] or [C, H, W] -> [P, C] float32, contiguous."""
    if offset is None:
        return np.zeros((1, channels), np.float32)
    offset = offset.permute(1, 2, 0) if offset.dim() == 3 else offset
    return array(offset.float().reshape(-1, channels).contiguous())


def outputs(shape: tuple[int, ...], steps: Epilogue | None) -> Masked:
    """Uninitialised (output, mask) of a GEMM whose output is `shape` [..., C]; the output is NCHW where 4-D."""
    pool = 1 if steps is None else steps.pool
    if len(shape) == 4:
        shape = (shape[0], shape[1] // pool, shape[2] // pool, shape[3])
    out = empty_channels_last(shape)
    if steps is None or not (steps.relu or pool > 1):
        return out, None
    if pool > 1:
        return out, torch.empty(shape, dtype=torch.int8)
    return out, torch.empty((*shape[:-1], (shape[-1] + 7) // 8), dtype=torch.uint8)


def finish(
    acc: Tensor,
    scale: np.ndarray,
    offset: np.ndarray,
    shape: tuple[int, ...],
    steps: Epilogue | None,
    out: Tensor,
    mask: Tensor | None,
) -> None:
    """acc [M, C], M the rows of `shape` [..., C] -> out and mask, written in place: acc*scale + offset, activated."""
    channels = shape[-1]
    use_torch_threads()
    rows = (array(acc), scale, offset, array(out).reshape(-1, channels))
    kept = None if mask is None else array(mask).reshape(-1, mask.shape[-1])
    if steps is None or steps.pool == 1:
        loops.finish(*rows, kept)
    else:
        loops.finish_pool(*rows, kept, (shape[1], shape[2]), steps.pool, steps.relu)


def _chunks(images: int, bytes_per_image: int, rows_per_image: int) -> list[slice]:
    """Split the images evenly into as few parts as CHUNK_BYTES, and int32 sums over a part's rows, allow."""
    most = max(1, min(CHUNK_BYTES // max(1, bytes_per_image), MAX_K // max(1, rows_per_image)))
    step = max(1, -(-images // -(-images // most)))
    return [slice(start, min(images, start + step)) for start in range(0, images, step)]


class Columns:
    """A convolution's rows for the GEMM, some images of t [N, H, W, C] at a time, in one buffer.

    size: the positions of an image, a row each. beside: the channels of 4 bytes that lie beside each row. fill: the
    loop that makes the rows of images.
    """

    def __init__(
        self,
        t: Tensor,
        kernel: tuple[int, int],
        geometry: ConvGeometry,
        size: tuple[int, int],
        beside: int,
        fill: Callable[[np.ndarray, np.ndarray], None],
    ) -> None:
        width, self.positions = kernel[0] * kernel[1] * t.shape[3], size[0] * size[1]
        self.t, self.size, self._fill = t, size, fill
        self.chunks = _chunks(t.shape[0], self.positions * (width * t.element_size() + 4 * beside), self.positions)
        self.most_rows = self.chunks[0].stop * self.positions
        self.is_plain = kernel == (1, 1) and geometry.stride == (1, 1) and geometry.padding == (0, 0)
        self._buffer = torch.empty((0 if self.is_plain else self.most_rows, width), dtype=t.dtype)

    def __getitem__(self, images: slice) -> Tensor:
        """[images, H, W, C] -> [images * positions, KH*KW*C]."""
        part = self.t[images]
        if self.is_plain:
            return part.reshape(-1, part.shape[3])
        columns = self._buffer[: part.shape[0] * self.positions]
        use_torch_threads()
        self._fill(array(part).reshape(part.shape[0], -1), array(columns))
        return columns


def input_columns(x: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, pad_value: Pad, beside: int) -> Columns:
    """x [N, H, W, C] -> rows of output positions; the border holds `pad_value`."""
    size, pad = (x.shape[1], x.shape[2]), (np.int8 if x.dtype == torch.int8 else np.float32)(int(pad_value))
    out_size = geometry.output_size(*size, kernel)
    steps = (kernel, geometry.stride, geometry.padding, geometry.dilation, size, out_size, pad)
    return Columns(x, kernel, geometry, out_size, beside, lambda t, rows: loops.columns_of_input(t, rows, *steps))


def gradient_columns(
    g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, in_size: tuple[int, int], beside: int
) -> Columns:
    """g [N, OH, OW, O] -> rows of input positions."""
    size = (g.shape[1], g.shape[2])
    steps = (kernel, geometry.stride, geometry.padding, geometry.dilation, in_size, size)
    return Columns(g, kernel, geometry, in_size, beside, lambda t, rows: loops.columns_of_gradient(t, rows, *steps))


@njit(**OUTER)
def _gemm(a, a_step, a_by_k, b, b_step, b_by_k, m_all, k_all, n_all, out):
    """a [M, K] and b [K, N] int8, flat -> out [M * N] int32, which K keeps within int32.

    A step leads from row to row, in memory, of a: of M rows, or of K where a_by_k; of b: of K where b_by_k, else of N.
    """
    groups, blocks = tiles.split(m_all, n_all)
    packed = np.empty((groups * tiles.GROUP, min(tiles.DEPTH, k_all + k_all % 2) * tiles.LANES), np.int16)
    for start in range(0, k_all, tiles.DEPTH):
        depth = min(tiles.DEPTH, k_all - start)
        for group in prange(groups):
            tiles.pack(b, b_step, b_by_k, start, depth, n_all, group, packed)
        for block in prange(blocks):
            tiles.multiply(a, a_step, a_by_k, start, depth, m_all, n_all, block, packed, out)


def has_tiles() -> bool:
    """Whether int8 products go through `tiles`: where torch's own are no int8 instruction, or not exact."""
    return not int8.int_mm_pays("cpu") and tiles.is_available()


def _in_memory(t: Tensor) -> tuple[np.ndarray, int, bool]:
    """t [R, C] -> (its elements and what lies between them, the step from row to row, whether these are columns)."""
    turned = t.shape[1] > 1 and t.stride(1) != 1 and t.stride(0) == 1
    rows = t.t() if turned else t
    rows = rows if rows.shape[1] == 1 or rows.stride(1) == 1 else rows.contiguous()
    step = rows.stride(0)
    return array(rows.as_strided(((rows.shape[0] - 1) * step + rows.shape[1],), (1,))), step, turned


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None, *, integers: bool = False) -> Tensor:
    """a [M, K] @ b [K, N], int8 -> [M, N] int32, as `int8.matmul`."""
    if not has_tiles():
        return int8.matmul(a, b, out, integers=integers)
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty((m, n), dtype=torch.int32) if out is None else out
    if not m * k * n:
        return out.zero_()
    use_torch_threads()
    right, b_step, b_by_n = _in_memory(b)
    _gemm(*_in_memory(a), right, b_step, not b_by_n, m, k, n, array(out.view(-1)))
    return out


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b into `out`, int32 for int8 operands, float32 for float32 ones."""
    return multiply(a, b, out) if a.dtype == torch.int8 else torch.mm(a, b, out=out)


def _accumulators(rows: int, columns: int, operand: Tensor) -> Tensor:
    return torch.empty((rows, columns), dtype=torch.int32 if operand.dtype == torch.int8 else torch.float32)


def multiply_and_finish(columns: Columns, weight: Tensor, how: Finish) -> Masked:
    """columns @ weight [K, C] -> (activated product * scale + offset [N, C, H, W], mask)."""
    channels, (scale, offset, steps) = weight.shape[1], how
    out, mask = outputs((columns.t.shape[0], *columns.size, channels), steps)
    constants, rows = (per_channel(scale, channels), offset_rows(offset, channels)), channels_last_rows(out)
    buffer = _accumulators(columns.most_rows, channels, weight)
    for images in columns.chunks:
        a = columns[images]
        acc, shape = _multiply(a, weight, buffer[: a.shape[0]]), (images.stop - images.start, *columns.size, channels)
        finish(acc, *constants, shape, steps, rows[images], None if mask is None else mask[images])
    return out, mask


def sum_products(columns: Columns, rows: Callable[[slice], Tensor], outputs: int) -> Tensor:
    """Sum over the chunks of rows^T @ columns, [O, K]: int32, int64 where more than MAX_K products are summed."""
    long = columns.t.shape[0] * columns.positions > MAX_K
    total: Tensor | None = None
    for images in columns.chunks:
        b = columns[images]
        a = rows(images)
        if a.dtype == torch.int8:
            part = _multiply(a.t(), b, _accumulators(outputs, b.shape[1], b))
            part = part.to(torch.int64) if long else part
        else:
            part = _sum_by_image(a, b, images.stop - images.start)
        total = part if total is None else total.add_(part)
    return total


def _sum_by_image(a: Tensor, b: Tensor, images: int) -> Tensor:
    """a [M, O], b [M, K] float32 -> a^T @ b, a product an image: one long float sum would be split by threads."""
    a, b = a.unflatten(0, (images, -1)).transpose(1, 2), b.unflatten(0, (images, -1))
    # A product by itself would be split after all.
    most = max(2, CHUNK_BYTES // (4 * a.shape[1] * b.shape[2]))
    parts = [float_gemm.sum_products(x, y) for x, y in zip(a.split(most), b.split(most), strict=True)]
    return sum(parts[1:], start=parts[0])
