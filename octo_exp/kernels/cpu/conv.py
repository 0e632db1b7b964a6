"""Convolutions on a CPU: GEMMs between compiled loops, some images at a time, so that what lies between stays small.

A convolution goes through as many images at a time as CHUNK_BYTES allow: im2col, GEMM, epilogue. Neither the columns
nor the accumulators of the whole batch ever exist: on fresh memory the page faults alone would cost more than the GEMM.
Int8 operands give the bits of the plain torch forms; float operands (layers that stay fp32) go the same way.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from octo_exp.kernels.cpu import loops
from octo_exp.kernels.cpu.elementwise import (
    array,
    channels_last_rows,
    empty_channels_last,
    finish,
    outputs,
    per_channel,
    scale_rows,
    spread,
    use_torch_threads,
)
from octo_exp.kernels.geometry import MAX_K, ConvGeometry
from octo_exp.kernels.plain import float_gemm, torch_int8
from octo_exp.workload import Epilogue

# Columns and 4-byte accumulators or gradients beside them that exist at a time.
CHUNK_BYTES = 8 * 2**20


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b into `out`, int32 for int8 operands, float32 for float32 ones."""
    return torch_int8.matmul(a, b, out) if a.dtype == torch.int8 else torch.mm(a, b, out=out)


def _accumulators(rows: int, columns: int, operand: Tensor) -> Tensor:
    return torch.empty((rows, columns), dtype=torch.int32 if operand.dtype == torch.int8 else torch.float32)


def _chunks(images: int, bytes_per_image: int, rows_per_image: int) -> list[slice]:
    """Split the images evenly into as few parts as CHUNK_BYTES, and int32 sums over a part's rows, allow."""
    most = max(1, min(CHUNK_BYTES // max(1, bytes_per_image), MAX_K // max(1, rows_per_image)))
    step = max(1, -(-images // -(-images // most)))
    return [slice(start, min(images, start + step)) for start in range(0, images, step)]


class _Columns:
    """A convolution's rows for the GEMM, some images at a time, in one buffer: its input's (im2col) or gradient's.

    `beside`: the channels of 4 bytes that lie beside each row.
    """

    def __init__(
        self, t: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, width: int, positions: int, beside: int
    ) -> None:
        self.t, self.kernel, self.geometry = t, kernel, geometry
        self.positions = positions
        self.chunks = _chunks(t.shape[0], positions * (width * t.element_size() + 4 * beside), positions)
        self.most_rows = self.chunks[0].stop * positions
        self.is_plain = kernel == (1, 1) and geometry.stride == (1, 1) and geometry.padding == (0, 0)
        self._buffer = torch.empty((0 if self.is_plain else self.most_rows, width), dtype=t.dtype)

    def __getitem__(self, images: slice) -> Tensor:
        """[images, H, W, C] -> [images * positions, KH*KW*C]."""
        part = self.t[images]
        n, h, w, c = part.shape
        if self.is_plain:
            return part.reshape(-1, c)
        columns = self._buffer[: n * self.positions]
        use_torch_threads()
        self._fill(array(part).reshape(n, h * w * c), array(columns), (h, w))
        return columns

    def _fill(self, source: np.ndarray, columns: np.ndarray, size: tuple[int, int]) -> None:
        raise NotImplementedError


class _InputColumns(_Columns):
    """x [N, H, W, C] -> rows of output positions; the border holds `pad_value`."""

    def __init__(
        self, x: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, pad_value: Tensor | int, beside: int
    ) -> None:
        self.out_size = geometry.output_size(x.shape[1], x.shape[2], kernel)
        self._pad = (np.int8 if x.dtype == torch.int8 else np.float32)(int(pad_value))
        width, positions = kernel[0] * kernel[1] * x.shape[3], self.out_size[0] * self.out_size[1]
        super().__init__(x, kernel, geometry, width, positions, beside)

    def _fill(self, source: np.ndarray, columns: np.ndarray, size: tuple[int, int]) -> None:
        steps = (self.geometry.stride, self.geometry.padding, self.geometry.dilation)
        loops.columns_of_input(source, columns, self.kernel, *steps, size, self.out_size, self._pad)


class _GradientColumns(_Columns):
    """g [N, OH, OW, O] -> rows of input positions."""

    def __init__(
        self, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, in_size: tuple[int, int], beside: int
    ) -> None:
        self._in_size = in_size
        super().__init__(g, kernel, geometry, kernel[0] * kernel[1] * g.shape[3], in_size[0] * in_size[1], beside)

    def _fill(self, source: np.ndarray, columns: np.ndarray, size: tuple[int, int]) -> None:
        steps = (self.geometry.stride, self.geometry.padding, self.geometry.dilation)
        loops.columns_of_gradient(source, columns, self.kernel, *steps, self._in_size, size)


def conv2d_scaled(
    x: Tensor,
    w: Tensor,
    geometry: ConvGeometry,
    pad_value: Tensor | int,
    scale: Tensor,
    offset: Tensor | None,
    epilogue: Epilogue | None,
) -> tuple[Tensor, Tensor | None]:
    """x [N, C, H, W], w [O, C, KH, KW], both int8 or both float32, one group: see `fused.int8_conv2d_scaled`."""
    columns = _InputColumns(channels_last_rows(x), (w.shape[2], w.shape[3]), geometry, pad_value, w.shape[0])
    weight = channels_last_rows(w).reshape(w.shape[0], -1).t()
    out, mask = outputs(torch.Size((x.shape[0], *columns.out_size, w.shape[0])), epilogue)
    scales, rows = per_channel(scale, w.shape[0]), channels_last_rows(out)
    buffer = _accumulators(columns.most_rows, w.shape[0], x)
    for images in columns.chunks:
        a = columns[images]
        shape = (images.stop - images.start, *columns.out_size, w.shape[0])
        part = None if mask is None else mask[images]
        finish(_multiply(a, weight, buffer[: a.shape[0]]), scales, offset, shape, epilogue, rows[images], part)
    return out, mask


def conv2d_grad_input_scaled(
    g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry, scale: Tensor
) -> Tensor:
    """g [N, O, OH, OW], w [O, C, KH, KW] int8, one group -> dx [N, C, H, W] float32, channels-last."""
    columns = _GradientColumns(channels_last_rows(g), (w.shape[2], w.shape[3]), geometry, size, w.shape[1])
    # Rows in the order of the columns: (kernel row, kernel column, output channel).
    weight = w.permute(2, 3, 0, 1).reshape(-1, w.shape[1])
    dx = empty_channels_last(torch.Size((g.shape[0], *size, w.shape[1])))
    scales, rows = per_channel(scale, w.shape[1]), channels_last_rows(dx)
    buffer = _accumulators(columns.most_rows, w.shape[1], g)
    for images in columns.chunks:
        a = columns[images]
        shape = (images.stop - images.start, *size, w.shape[1])
        finish(_multiply(a, weight, buffer[: a.shape[0]]), scales, None, shape, None, rows[images], None)
    return dx


def conv2d_grad_weight_scaled(
    x: Tensor,
    g: Tensor,
    kernel: tuple[int, int],
    geometry: ConvGeometry,
    pad_value: Tensor | int,
    scale: Tensor,
    offset: Tensor | None,
) -> Tensor:
    """x [N, C, H, W], g [N, O, OH, OW] int8, one group, offset [O] -> dw [O, C, KH, KW] float32, channels-last."""
    columns = _InputColumns(channels_last_rows(x), kernel, geometry, pad_value, 0)
    rows = channels_last_rows(g)
    acc = _sum_products(columns, lambda images: rows[images].reshape(-1, g.shape[1]), g.shape[1])
    return scale_rows(acc, scale, offset).reshape(g.shape[1], *kernel, x.shape[1]).permute(0, 3, 1, 2)


def _sum_products(columns: _Columns, rows: Callable[[slice], Tensor], outputs: int) -> Tensor:
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


def float_conv2d_grad_weight(
    x: Tensor,
    g: Tensor,
    mask: Tensor | None,
    epilogue: Epilogue | None,
    kernel: tuple[int, int],
    geometry: ConvGeometry,
) -> Tensor:
    """x [N, C, H, W] and masked g (of the epilogue's output) float32 -> dw [O, C, KH, KW], channels-last.

    The pooled gradient is spread over its windows some images at a time and never exists whole.
    """
    columns = _InputColumns(channels_last_rows(x), kernel, geometry, 0, g.shape[1])
    outputs = g.shape[1]

    def rows(images: slice) -> Tensor:
        part = g[images]
        if epilogue is not None and epilogue.pool > 1:
            part = spread(part, mask[images], epilogue, columns.out_size)
        return channels_last_rows(part).reshape(-1, outputs)

    return _sum_products(columns, rows, outputs).reshape(outputs, *kernel, x.shape[1]).permute(0, 3, 1, 2)
