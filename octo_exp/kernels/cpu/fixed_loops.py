"""Compiled loops of the integer graph on a CPU (numba): integers only, images NHWC, and the codes of float images.

Work is split by rows of images; no result depends on the split. What the arithmetic is stands in `fixed`.
"""

import numpy as np

from octo_exp.kernels.cpu.compiled import INNER, OUTER, njit, prange
from octo_exp.kernels.cpu.fixed_vectors import requantized
from octo_exp.kernels.cpu.vectors import LANES, load, store

# Rows of a matrix that a thread takes at a time, and the elements from which on threads are worth their start.
_ROWS = 16
PARALLEL = 2**14


@njit(**OUTER)
def codes_of_images(x, scale, zero, low, high, out):
    """x [N, C, H, W] float32 -> out [N, H, W, C] = clamp(rint(x / scale) + zero, -128, 127).

    False where one is nan, or not within low and high.
    """
    n, channels, height, width = x.shape
    wrong = 0
    for r in prange(n * height):
        image, y = x[r // height], r % height
        for c in range(channels):
            for column in range(width):
                v = image[c, y, column]
                wrong += np.int64(not low <= v <= high)
                code = np.rint(v / scale) + zero
                out[r // height, y, column, c] = np.int8(min(max(code, np.float32(-128)), np.float32(127)))
    return wrong == 0


@njit(**INNER)
def requantize_row(acc, offset, value, shift, zero, out):
    """acc [C] int32 -> out [C] int8."""
    for c in range(0, acc.size, LANES):
        n = min(LANES, acc.size - c)
        # A lane beyond the end has value 0 and shift 0, and is not stored.
        v = requantized(load(acc, c, n), load(offset, c, n), load(value, c, n), load(shift, c, n), np.int64(zero))
        store(out, c, n, v)


@njit(**INNER)
def requantize_rows(acc, offset, value, shift, zero, out):
    """See `requantize`; on the caller's thread."""
    for m in range(acc.shape[0]):
        requantize_row(acc[m], offset, value, shift, zero, out[m])


@njit(**OUTER)
def requantize(acc, offset, value, shift, zero, out):
    """acc [M, C] int32 -> out [M, C] int8; offset, value, shift int32 [C]."""
    rows = acc.shape[0]
    for k in prange((rows + _ROWS - 1) // _ROWS):
        part = slice(k * _ROWS, min(rows, k * _ROWS + _ROWS))
        requantize_rows(acc[part], offset, value, shift, zero, out[part])


@njit(**OUTER)
def depthwise(x, w, offset, value, shift, x_zero, y_zero, stride, padding, out):
    """x [N, H, W, C], w [KH, KW, C] int8 -> out [N, OH, OW, C] int8: sums in int32, then as `requantize`.

    offset holds -x_zero times the sum of all taps, so a tap on the border counts x_zero.
    """
    (_, height, width, channels), (kh, kw, _), (n, oh, ow, _) = x.shape, w.shape, out.shape
    for r in prange(n * oh):
        image, y = x[r // oh], r % oh
        acc = np.empty(channels, np.int32)
        for column in range(ow):
            acc[:] = 0
            for i in range(kh):
                row = y * stride + i - padding[0]
                for j in range(kw):
                    at, tap = column * stride + j - padding[1], w[i, j]
                    if 0 <= row < height and 0 <= at < width:
                        pixel = image[row, at]
                        for c in range(channels):
                            acc[c] += np.int32(pixel[c]) * np.int32(tap[c])
                    else:
                        for c in range(channels):
                            acc[c] += np.int32(x_zero) * np.int32(tap[c])
            requantize_row(acc, offset, value, shift, y_zero, out[r // oh, y, column])


@njit(**OUTER)
def max_pool(x, kernel, stride, padding, out):
    """x [N, H, W, C] int8 -> out [N, OH, OW, C]; a border never wins."""
    (_, height, width, channels), (n, oh, ow, _) = x.shape, out.shape
    for r in prange(n * oh):
        image, y = x[r // oh], r % oh
        for column in range(ow):
            best = out[r // oh, y, column]
            best[:] = -128
            for row in range(max(0, y * stride - padding), min(height, y * stride - padding + kernel)):
                for at in range(max(0, column * stride - padding), min(width, column * stride - padding + kernel)):
                    pixel = image[row, at]
                    for c in range(channels):
                        best[c] = max(best[c], pixel[c])


@njit(**OUTER)
def average_pool(x, kernel, stride, out):
    """x [N, H, W, C] int8 -> out [N, OH, OW, C]: means, halves to even."""
    channels, (n, oh, ow, _) = x.shape[3], out.shape
    count = kernel * kernel
    for r in prange(n * oh):
        image, y = x[r // oh], r % oh
        sums = np.empty(channels, np.int32)
        for column in range(ow):
            sums[:] = 0
            for row in range(y * stride, y * stride + kernel):
                for at in range(column * stride, column * stride + kernel):
                    pixel = image[row, at]
                    for c in range(channels):
                        sums[c] += pixel[c]
            for c in range(channels):
                twice = 2 * sums[c] + count
                mean = twice // (2 * count)
                # A half was rounded up; where that made it odd, the even number is one below.
                if mean * 2 * count == twice and mean % 2 != 0:
                    mean -= 1
                out[r // oh, y, column, c] = np.int8(mean)


@njit(**OUTER)
def add(x1, x2, value_1, value_2, shift, zeros, out):
    """x1, x2 [N, n] int8 -> out [N, n]: see `fixed`."""
    half = np.int64(1) << np.int64(shift - 1)
    for k in prange(x1.shape[0]):
        a, b, y = x1[k], x2[k], out[k]
        for i in range(a.size):
            product = (np.int64(a[i]) - zeros[0]) * value_1 + (np.int64(b[i]) - zeros[1]) * value_2
            code = ((product + half) >> shift) + zeros[2]
            y[i] = np.int8(min(max(code, -128), 127))
