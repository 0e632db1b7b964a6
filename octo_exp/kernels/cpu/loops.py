"""Compiled loops of the CPU path (numba): what stands between the int8 GEMMs, one pass over memory each.

Arrays are C-contiguous; activations are NHWC, so a pixel's channels are adjacent and every inner loop runs over them.
Threads are torch's own where numba finds its OpenMP; work is split by rows of pixels, never by thread, and no result
depends on the split. Compiled on first use (some seconds) and kept in numba's cache.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from octo_exp.kernels.cpu.compiled import INNER, OUTER, njit, prange
from octo_exp.kernels.cpu.noise import uniform

# torch has loaded its OpenMP before: the same threads serve both, and none waits for the other's.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

# Elements a block of an elementwise loop.
BLOCK = 16_384
_ZERO = np.float32(0)


def array(t: Tensor) -> np.ndarray:
    """Return the tensor as an array on the same memory."""
    return t.detach().numpy()


def use_torch_threads() -> None:
    """Let the next compiled loop run on as many threads as torch uses."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    # When numba starts its threads it sets the number of the OpenMP that it shares with torch.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@njit(**INNER)
def _quantize(t, out, first, seed, scale, zero_point, q_min, q_max, low, high):
    for i in range(t.size):
        v = t[i]
        v = low if v < low else v
        v = high if v > high else v
        # Which of the two is known when the loop is compiled.
        if seed is None:
            v = np.rint(v / scale) + zero_point
        else:
            v = np.floor(v / scale + uniform(np.uint64(first + i), seed)) + zero_point
        v = q_min if v < q_min else v
        v = q_max if v > q_max else v
        out[i] = np.int8(v)


@njit(**OUTER)
def quantize(t, out, seed, scale, zero_point, q_min, q_max, low, high):
    """t [M], float32 -> out [M] int8; every bound and constant a float32.

    seed: None rounds to nearest even; a uint64 is for floor(. + noise), where element i draws from (seed, i).
    """
    n = t.size
    for b in prange((n + BLOCK - 1) // BLOCK):
        start, stop = b * BLOCK, min(n, b * BLOCK + BLOCK)
        _quantize(t[start:stop], out[start:stop], start, seed, scale, zero_point, q_min, q_max, low, high)


@njit(**OUTER)
def quantize_rows(t, out, scale, q_min, q_max):
    """t [R, K] float32, scale [R] -> out [R, K] int8: one scale a row, no zero point."""
    for r in prange(t.shape[0]):
        _quantize(t[r], out[r], 0, None, scale[r], _ZERO, q_min, q_max, -np.float32(np.inf), np.float32(np.inf))


@njit(**INNER)
def _columns_of_row(x, out, y, kernel, stride, padding, dilation, size, channels, pad_value):
    (kh, kw), (h, w) = kernel, size
    for position in range(out.shape[0]):
        columns = out[position]
        for i in range(kh):
            row = y * stride[0] - padding[0] + i * dilation[0]
            for j in range(kw):
                column = position * stride[1] - padding[1] + j * dilation[1]
                target = columns[(i * kw + j) * channels : (i * kw + j + 1) * channels]
                if 0 <= row < h and 0 <= column < w:
                    source = x[(row * w + column) * channels : (row * w + column + 1) * channels]
                    for c in range(channels):
                        target[c] = source[c]
                else:
                    for c in range(channels):
                        target[c] = pad_value


@njit(**INNER)
def _columns_of_thin_row(x, out, y, kernel, stride, padding, size, channels, pad_value):
    # Few channels: the taps of a kernel row lie side by side, so they are one run.
    (kh, kw), (h, w) = kernel, size
    for position in range(out.shape[0]):
        columns = out[position]
        column = position * stride[1] - padding[1]
        first, last = min(max(0, -column), kw), max(0, min(kw, w - column))
        for i in range(kh):
            row = y * stride[0] - padding[0] + i
            target = columns[i * kw * channels : (i + 1) * kw * channels]
            if 0 <= row < h and first == 0 and last == kw:
                source = x[(row * w + column) * channels : (row * w + column + kw) * channels]
                for c in range(kw * channels):
                    target[c] = source[c]
            else:
                for c in range(kw * channels):
                    inside = 0 <= row < h and first * channels <= c < last * channels
                    target[c] = x[(row * w + column) * channels + c] if inside else pad_value


@njit(**OUTER)
def columns_of_input(x, out, kernel, stride, padding, dilation, size, out_size, pad_value):
    """im2col: x [N, H*W*C] -> out [N*OH*OW, KH*KW*C], the border filled with pad_value."""
    (oh, ow), channels = out_size, x.shape[1] // (size[0] * size[1])
    for r in prange(x.shape[0] * oh):
        rows = out[r * ow : (r + 1) * ow]
        if channels < 16 and dilation[1] == 1 and dilation[0] == 1:
            _columns_of_thin_row(x[r // oh], rows, r % oh, kernel, stride, padding, size, channels, pad_value)
        else:
            _columns_of_row(x[r // oh], rows, r % oh, kernel, stride, padding, dilation, size, channels, pad_value)


@njit(**INNER)
def _columns_of_gradient_row(g, out, y, kernel, stride, padding, dilation, out_size, channels):
    (kh, kw), (oh, ow) = kernel, out_size
    for x in range(out.shape[0]):
        columns = out[x]
        for i in range(kh):
            row = y + padding[0] - i * dilation[0]
            row_hit = row >= 0 and row % stride[0] == 0 and row // stride[0] < oh
            for j in range(kw):
                column = x + padding[1] - j * dilation[1]
                target = columns[(i * kw + j) * channels : (i * kw + j + 1) * channels]
                if row_hit and column >= 0 and column % stride[1] == 0 and column // stride[1] < ow:
                    start = (row // stride[0] * ow + column // stride[1]) * channels
                    source = g[start : start + channels]
                    for c in range(channels):
                        target[c] = source[c]
                else:
                    for c in range(channels):
                        target[c] = 0


@njit(**OUTER)
def columns_of_gradient(g, out, kernel, stride, padding, dilation, size, out_size):
    """g [N, OH*OW*O] -> out [N*H*W, KH*KW*O]: for each input pixel and tap the output that read it, or 0."""
    (h, w), channels = size, g.shape[1] // (out_size[0] * out_size[1])
    for r in prange(g.shape[0] * h):
        rows = out[r * w : (r + 1) * w]
        _columns_of_gradient_row(g[r // h], rows, r % h, kernel, stride, padding, dilation, out_size, channels)


@njit(**INNER)
def _finish(acc, scale, offset, first, y):
    for i in range(acc.shape[0]):
        source, shift, target = acc[i], offset[(first + i) % offset.shape[0]], y[i]
        for c in range(acc.shape[1]):
            target[c] = np.float32(source[c]) * scale[c] + shift[c]


# byte -> for each of its 8 bits all ones or all zeros, to be ANDed with a float's own bits.
_SELECT = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, -1, 0).astype(np.int32)
# Eight bytes of 0 or 1, read as one integer and multiplied by it, have their bits side by side in the highest byte.
_GATHER = np.uint64(0x0102040810204080)


@njit(**INNER)
def _relu_bits(y, bits):
    rows, channels = y.shape
    padded = (channels + 7) // 8 * 8
    positive = np.zeros(padded, np.uint8)
    eights = positive.view(np.uint64)
    for i in range(rows):
        row, mask = y[i], bits[i]
        for c in range(channels):
            # A NaN's gradient passes, as in torch.
            positive[c] = not row[c] <= _ZERO
        for b in range(padded // 8):
            mask[b] = np.uint8((eights[b] * _GATHER) >> np.uint64(56))
        for c in range(channels):
            # A NaN passes, as it does in torch.
            row[c] = _ZERO if row[c] < _ZERO else row[c]


@njit(**OUTER)
def finish(acc, scale, offset, y, bits):
    """acc [M, C], scale [C], offset [P, C] (row m takes m mod P) -> y = acc*scale + offset, float32, then ReLU or not.

    bits [M, ceil(C/8)] uint8: which outputs are not 0, lowest bit first; None where there is no ReLU.
    """
    rows = max(1, BLOCK // max(1, acc.shape[1]))
    for b in prange((acc.shape[0] + rows - 1) // rows):
        start, stop = b * rows, min(acc.shape[0], b * rows + rows)
        _finish(acc[start:stop], scale, offset, start, y[start:stop])
        if bits is not None:
            _relu_bits(y[start:stop], bits[start:stop])


@njit(**INNER)
def _finish_pool(acc, scale, offset, first, y, index, k, width, relu):
    channels = acc.shape[1]
    dead = np.int8(k * k)
    for x in range(y.shape[0]):
        best, where = y[x], index[x]
        for tap in range(k * k):
            at = tap // k * width + x * k + tap % k
            source, shift = acc[at], offset[(first + at) % offset.shape[0]]
            for c in range(channels):
                v = np.float32(source[c]) * scale[c] + shift[c]
                # The first of equals, and a NaN, as in torch.
                taken = tap == 0 or v > best[c] or v != v
                best[c] = v if taken else best[c]
                where[c] = np.int8(tap) if taken else where[c]
        if relu:
            for c in range(channels):
                where[c] = dead if best[c] <= _ZERO else where[c]
                best[c] = _ZERO if best[c] < _ZERO else best[c]


@njit(**OUTER)
def finish_pool(acc, scale, offset, y, index, size, k, relu):
    """As `finish`, then ReLU if asked for, then k x k max pooling.

    acc [N*H*W, C] -> y [N*(H//k)*(W//k), C] and index, int8: the maximum's place in its window, k*k where ReLU cut it.
    """
    h, w = size
    ph, pw = h // k, w // k
    for r in prange(y.shape[0] // max(1, pw)):
        first = (r // ph * h + r % ph * k) * w
        rows = slice(r * pw, (r + 1) * pw)
        _finish_pool(acc[first : first + k * w], scale, offset, first, y[rows], index[rows], k, w, relu)


@njit(**OUTER)
def scale_rows(acc, scale, offset, out):
    """acc [R, K] integer, scale [R], offset [R] -> out = acc*scale + offset, float32."""
    for r in prange(acc.shape[0]):
        source, target, s, shift = acc[r], out[r], scale[r], offset[r]
        for k in range(acc.shape[1]):
            target[k] = np.float32(source[k]) * s + shift


@njit(**INNER)
def _mask_bits(g, bits, select, out):
    whole = g.shape[1] // 8
    for i in range(g.shape[0]):
        source, mask, target = g[i], bits[i], out[i]
        for b in range(whole):
            chosen = select[mask[b]]
            for k in range(8):
                target[b * 8 + k] = source[b * 8 + k] & chosen[k]
        for c in range(whole * 8, g.shape[1]):
            target[c] = source[c] & select[mask[whole], c - whole * 8]


@njit(**OUTER)
def mask_bits(g, bits, out):
    """g [M, C] float32, bits [M, ceil(C/8)] -> out = g where the bit is set, else 0."""
    source, target = g.view(np.int32), out.view(np.int32)
    rows = max(1, BLOCK // max(1, g.shape[1]))
    for b in prange((g.shape[0] + rows - 1) // rows):
        start, stop = b * rows, min(g.shape[0], b * rows + rows)
        _mask_bits(source[start:stop], bits[start:stop], _SELECT, target[start:stop])


@njit(**OUTER)
def mask_index(g, index, dead, out):
    """g, index [M, C] -> out = g where index < dead, else 0."""
    for i in prange(g.shape[0]):
        source, where, target = g[i], index[i], out[i]
        for c in range(g.shape[1]):
            target[c] = source[c] if where[c] < dead else _ZERO


@njit(**OUTER)
def spread(t, index, out, size, k):
    """t, index [N*(H//k)*(W//k), C] -> out [N*H*W, C]: t at each maximum's place, 0 elsewhere; H, W multiples of k."""
    (h, w), channels = size, t.shape[1]
    ph, pw = h // k, w // k
    for r in prange(t.shape[0] // max(1, pw)):
        first = (r // ph * h + r % ph * k) * w
        for x in range(pw):
            source, where = t[r * pw + x], index[r * pw + x]
            for tap in range(k * k):
                target = out[first + tap // k * w + x * k + tap % k]
                for c in range(channels):
                    target[c] = source[c] if where[c] == tap else 0
