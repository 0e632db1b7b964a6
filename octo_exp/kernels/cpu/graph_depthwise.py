"""Compiled loops of depthwise convolutions on a CPU (numba): sums of taps in registers, with what stands around them.

An image is padded, and its columns are sorted by their remainder on division by the stride: [rows, stride, columns, C],
where every tap reads a run of pixels. Taps are tiled to whole vectors, and four vectors of a run share each. Images are
taken one by one, so that what lies between an input and its output stays in the cache. Layouts and splits as in
`graph_loops`. Sums are float32: whole ones are exact below 2^24, which `MAX_TAPS` of int8 products cannot reach.
"""

import numpy as np

from octo_exp.kernels.cpu.compiled import INNER, OUTER, njit, prange
from octo_exp.kernels.cpu.graph_loops import block_size, centre, fold, mask_image, period_of, rescale_image, tiled
from octo_exp.kernels.cpu.vectors import LANES, load, multiply_add, spread, store

# A code less its zero point is at most 255, a weight 128.
MAX_TAPS = 2**24 // (255 * 128)


@njit(**INNER)
def _room(size, padding, stride, channels):
    # A padded image of zeros, and a vector more, which may be read.
    rows, columns = size[0] + 2 * padding[0], (size[1] + 2 * padding[1] + stride - 1) // stride
    return np.zeros(rows * stride * columns * channels + LANES, np.float32), columns * channels


@njit(**INNER)
def _padded(image, zero, padding, stride, channels, out, columns):
    # image [H, W * C] int8 -> inside of out [H + 2p, stride, columns]: codes less their zero point.
    flat, width = image.reshape(-1), image.shape[1]
    # A run of pixels with one remainder.
    size = width if stride == 1 else channels
    for y in range(image.shape[0]):
        for k in range(width // size):
            at, x = y * width + k * size, k + padding[1]
            to = ((y + padding[0]) * stride + x % stride) * columns + x // stride * channels
            centre(flat[at : at + size], zero, out[to : to + size])


@njit(**INNER)
def _offsets(kernel, stride, channels, columns):
    # Where each tap reads in a padded image, for the output's first element.
    kh, kw = kernel
    out = np.empty(kh * kw, np.int64)
    for tap in range(kh * kw):
        i, j = tap // kw, tap % kw
        out[tap] = (i * stride + j % stride) * columns + j // stride * channels
    return out


@njit(**INNER)
def _taps(w, order):
    # w [C, KH*KW] -> [KH*KW, period] in that order: each tap's weights, rounded, repeated to whole vectors.
    channels, period = w.shape[0], period_of(w.shape[0])
    out = np.empty((order.size, period), np.float32)
    for k in range(order.size):
        for i in range(0, period, channels):
            for c in range(channels):
                out[k, i + c] = np.rint(w[c, order[k]])
    return out


@njit(**INNER)
def _are_codes(w):
    # Whether all are int8 when they are rounded; nan is not.
    inside = True
    for v in w.reshape(-1):
        inside &= (np.rint(v) >= -128) & (np.rint(v) <= 127)
    return inside


@njit(**INNER)
def _sum_taps(image, at, offsets, taps, first, last, out, to, n):
    # out[to : to + n] = sum over taps first to last of image[at + offset :] * tap.
    period, flat = taps.shape[1], taps.reshape(-1)
    for phase in range(0, min(period, n), LANES):
        i = phase
        while i + 3 * period + LANES <= n:
            a = b = c = d = spread(np.float32(0))
            for t in range(first, last):
                x, w = at + offsets[t] + i, load(flat, t * period + phase, LANES)
                a = multiply_add(load(image, x, LANES), w, a)
                b = multiply_add(load(image, x + period, LANES), w, b)
                c = multiply_add(load(image, x + 2 * period, LANES), w, c)
                d = multiply_add(load(image, x + 3 * period, LANES), w, d)
            store(out, to + i, LANES, a)
            store(out, to + i + period, LANES, b)
            store(out, to + i + 2 * period, LANES, c)
            store(out, to + i + 3 * period, LANES, d)
            i += 4 * period
        while i < n:
            a = spread(np.float32(0))
            for t in range(first, last):
                w = load(flat, t * period + phase, LANES)
                a = multiply_add(load(image, at + offsets[t] + i, LANES), w, a)
            store(out, to + i, min(LANES, n - i), a)
            i += period


@njit(**OUTER)
def depthwise(codes, w, x_zero, kernel, stride, padding, size, out_size, parts, bias, scale, y_zero, out, bits):
    """codes [N, H, W*C] int8, w [C, KH*KW] float32 -> out [N, OH*OW*C] int8, bits: sums, then as `rescale`.

    Weights are rounded here; False, and nothing is written, where one is beyond int8. stride is the same both ways;
    size (H, W), out_size (OH, OW); parts: threads, at most N.
    """
    if not _are_codes(w):
        return False
    channels, block, row = w.shape[0], block_size(bias.size), out_size[1] * w.shape[0]
    taps, shifts = _taps(w, np.arange(w.shape[1])), np.zeros(block, np.float32)
    biases, scales = tiled(bias, block), tiled(scale, block)
    for p in prange(parts):
        # A thread's own buffers, whose border stays 0: fresh memory would cost more than the sums.
        image, columns = _room(size, padding, stride, channels)
        offsets, acc = _offsets(kernel, stride, channels, columns), np.empty(out_size[0] * row, np.float32)
        for n in range(codes.shape[0] * p // parts, codes.shape[0] * (p + 1) // parts):
            _padded(codes[n], x_zero, padding, stride, channels, image, columns)
            for y in range(out_size[0]):
                at = y * stride * stride * columns
                _sum_taps(image, at, offsets, taps, 0, offsets.size, acc, y * row, row)
            rescale_image(acc, shifts, biases, scales, y_zero, out[n], bits[n])
    return True


@njit(**INNER)
def _classes(kernel, stride):
    # Taps sorted by their remainders on division by the stride, the last first so that they read upwards: their order,
    # and where each pair of remainders begins.
    kh, kw = kernel
    order, starts = np.empty(kh * kw, np.int64), np.empty(stride * stride + 1, np.int64)
    k = 0
    for remainders in range(stride * stride):
        starts[remainders] = k
        for tap in range(kh * kw - 1, -1, -1):
            if tap // kw % stride * stride + tap % kw % stride == remainders:
                order[k] = tap
                k += 1
    starts[stride * stride] = k
    return order, starts


@njit(**INNER)
def _copy_runs(source, runs, size, out, to, step):
    # source [runs * size] -> out, a run every `step` elements.
    whole = size // LANES * LANES
    for k in range(runs):
        start, target = k * size, to + k * step
        for i in range(0, whole, LANES):
            store(out, target + i, LANES, load(source, start + i, LANES))
        if whole < size:
            store(out, target + whole, size - whole, load(source, start + whole, size - whole))


@njit(**INNER)
def _grad_input(h, columns, offsets, taps, starts, margins, stride, padding, size, channels, line, dx):
    # Pixels that the same taps reach are a convolution of h by those taps: each sum is written once.
    for y in range(size[0]):
        at_row = (y + padding[0]) // stride + margins[0]
        for remainder in range(stride):
            k = (y + padding[0]) % stride * stride + remainder
            first = (padding[1] - remainder + stride - 1) // stride
            count = (padding[1] + size[1] - 1 - remainder) // stride - first + 1
            if count < 1:
                continue
            at, to = at_row * columns + (first + margins[1]) * channels, y * size[1] * channels
            if stride == 1:
                _sum_taps(h, at, offsets, taps, starts[k], starts[k + 1], dx, to, count * channels)
                continue
            _sum_taps(h, at, offsets, taps, starts[k], starts[k + 1], line, 0, count * channels)
            to += (first * stride + remainder - padding[1]) * channels
            _copy_runs(line, count, channels, dx, to, stride * channels)


@njit(**INNER)
def _correlate(image, h, row, offsets, step, sums):
    # sums [KH*KW, period] = sum over pixels of image[at + offset] * h, whose rows are `row` long.
    (taps, period), flat = sums.shape, sums.reshape(-1)
    for t in range(0, taps, 5):
        # The last group may repeat a tap.
        t0, t1, t2, t3, t4 = t, min(t + 1, taps - 1), min(t + 2, taps - 1), min(t + 3, taps - 1), min(t + 4, taps - 1)
        for phase in range(0, min(period, row), LANES):
            a = b = c = d = e = spread(np.float32(0))
            for y in range(h.size // row):
                for i in range(phase, row, period):
                    at, g = y * step + i, load(h, y * row + i, min(LANES, row - i))
                    a = multiply_add(load(image, at + offsets[t0], LANES), g, a)
                    b = multiply_add(load(image, at + offsets[t1], LANES), g, b)
                    c = multiply_add(load(image, at + offsets[t2], LANES), g, c)
                    d = multiply_add(load(image, at + offsets[t3], LANES), g, d)
                    e = multiply_add(load(image, at + offsets[t4], LANES), g, e)
            store(flat, t0 * period + phase, LANES, a)
            store(flat, t1 * period + phase, LANES, b)
            store(flat, t2 * period + phase, LANES, c)
            store(flat, t3 * period + phase, LANES, d)
            store(flat, t4 * period + phase, LANES, e)


@njit(**INNER)
def _pick(h, kept, channels, out):
    # h [OH*OW*C] -> out [OH*OW*K]: the kept channels.
    for x in range(h.size // channels):
        for k in range(kept.size):
            out[x * kept.size + k] = h[x * channels + kept[k]]


@njit(**OUTER)
def depthwise_backward(g, bits, scale, w, codes, x_zero, kept, kernel, stride, padding, size, parts, dx, dw, db):
    """g [N, OH, OW*C], bits, scale [C] -> dx [N, H*W*C], dw [N, KH*KW, K] and db [N, C] float64, an image's each.

    w [C, KH*KW] float32 for dx; codes [N, H, W*K] int8 of the K kept channels for dw (`kept` empty: all).
    h = g * bit * scale.
    """
    channels, (_, oh, row), some = scale.size, g.shape, dw.shape[2]
    order, starts = _classes(kernel, stride)
    taps, scales = _taps(w, order if dx.size else order[:0]), tiled(scale, block_size(channels))
    margins = (kernel[0] - 1) // stride, (kernel[1] - 1) // stride
    rows = margins[0] + max(oh, (padding[0] + size[0] - 1) // stride + 1)
    columns = (margins[1] + max(row // channels, (padding[1] + size[1] - 1) // stride + 1)) * channels
    for p in prange(parts):
        h, tile = np.empty(oh * row, np.float32), np.empty(scales.size, np.float32)
        spaced = np.zeros(rows * columns + LANES if dx.size else 0, np.float32)
        offsets, line = np.empty(order.size, np.int64), np.empty(size[1] * channels, np.float32)
        for k in range(order.size):
            i, j = order[k] // kernel[1] // stride, order[k] % kernel[1] // stride
            offsets[k] = -(i * columns + j * channels)
        image, image_columns = _room(size, padding, stride, some)
        reads, share = _offsets(kernel, stride, some, image_columns), np.empty(oh * row // channels * some, np.float32)
        sums = np.zeros((order.size, period_of(max(some, 1))), np.float32)
        for n in range(g.shape[0] * p // parts, g.shape[0] * (p + 1) // parts):
            mask_image(g[n].reshape(-1), bits[n], scales, tile, h, db[n])
            if dx.size:
                _copy_runs(h, oh, row, spaced, margins[0] * columns + margins[1] * channels, columns)
                _grad_input(
                    spaced, columns, offsets, taps, starts, margins, stride, padding, size, channels, line, dx[n]
                )
            if dw.size:
                if kept.size:
                    _pick(h, kept, channels, share)
                _padded(codes[n], x_zero, padding, stride, some, image, image_columns)
                width, step = row // channels * some, stride * stride * image_columns
                _correlate(image, share if kept.size else h, width, reads, step, sums)
                dw[n] = 0
                for t in range(order.size):
                    fold(sums[t], dw[n, t])
