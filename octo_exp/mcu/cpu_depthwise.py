"""Compiled loops of depthwise convolutions on a CPU (numba): sums tap by tap, with what stands around them.

A tap runs over a row of pixels at a time. For that an image is padded and its columns are sorted by their remainder on
division by the stride: [rows, stride, columns, C], where every tap reads one run. Images are taken one by one, so that
what lies between an input and its output stays in the cache. Layouts and splits as in `cpu_loops`.
"""

import numpy as np
from numba import njit, prange

from octo_exp.mcu.cpu_loops import INNER, OUTER, block_size, centre, fold, mask_image, rescale_image, tiled

# A product and its sum in one rounding: exact for integers, closer for floats.
FUSED = {"cache": True, "error_model": "numpy", "fastmath": {"contract"}}


@njit(**INNER)
def _padded(image, zero, padding, stride, channels, out):
    # image [H, W * C] int8 -> inside of out [H + 2p, stride, columns * C]: codes less their zero point.
    for y in range(image.shape[0]):
        if stride == 1:
            start = padding[1] * channels
            centre(image[y], zero, out[y + padding[0], 0, start : start + image.shape[1]])
            continue
        for x in range(image.shape[1] // channels):
            at = x + padding[1]
            target = out[y + padding[0], at % stride, at // stride * channels : (at // stride + 1) * channels]
            centre(image[y, x * channels : (x + 1) * channels], zero, target)


@njit(**INNER)
def _unpadded(image, padding, stride, channels, out):
    # The inside of an image [H + 2p, stride, columns * C] -> out [H, W * C].
    for y in range(out.shape[0]):
        if stride == 1:
            start = padding[1] * channels
            out[y] = image[y + padding[0], 0, start : start + out.shape[1]]
            continue
        for x in range(out.shape[1] // channels):
            at = x + padding[1]
            source = image[y + padding[0], at % stride, at // stride * channels : (at // stride + 1) * channels]
            target = out[y, x * channels : (x + 1) * channels]
            for c in range(channels):
                target[c] = source[c]


@njit(**INNER)
def _padded_shape(size, padding, stride, channels):
    return size[0] + 2 * padding[0], stride, (size[1] + 2 * padding[1] + stride - 1) // stride * channels


@njit(**FUSED)
def _multiply_add(x, w, acc):
    for i in range(x.size):
        acc[i] += x[i] * w[i]


@njit(**FUSED)
def _multiply_add_3(x0, x1, x2, w0, w1, w2, acc):
    for i in range(x0.size):
        acc[i] = acc[i] + x0[i] * w0[i] + x1[i] * w1[i] + x2[i] * w2[i]


@njit(**INNER)
def _offsets(image, kernel, channels):
    # Where each tap reads in the flat image, for the output's first element.
    kh, kw = kernel
    _, stride, columns = image.shape
    out = np.empty(kh * kw, np.int64)
    for tap in range(kh * kw):
        i, j = tap // kw, tap % kw
        out[tap] = (i * stride + j % stride) * columns + j // stride * channels
    return out


@njit(**INNER)
def _depthwise(image, taps, offsets, step, acc):
    # image flat, taps [KH*KW, tile] -> acc [OH, OW*C]; step: from one output row's pixels to the next one's.
    tile = taps.shape[1]
    for start in range(0, acc.shape[1], tile):
        n = min(acc.shape[1] - start, tile)
        for y in range(acc.shape[0]):
            row, at = acc[y, start : start + n], y * step + start
            row[:] = 0
            # Three at a time, for the sum is read and written once.
            for t in range(0, taps.shape[0] - 2, 3):
                a, b, c = at + offsets[t], at + offsets[t + 1], at + offsets[t + 2]
                _multiply_add_3(
                    image[a : a + n], image[b : b + n], image[c : c + n], taps[t], taps[t + 1], taps[t + 2], row
                )
            for t in range(taps.shape[0] // 3 * 3, taps.shape[0]):
                a = at + offsets[t]
                _multiply_add(image[a : a + n], taps[t], row)


@njit(**INNER)
def _taps(w, tile, reverse, dtype):
    # w [C, KH*KW] -> [KH*KW, tile]: each tap's weights once for each pixel of a tile; the last tap first in reverse.
    channels, taps = w.shape
    out = np.empty((taps, tile), dtype)
    for t in range(taps):
        for i in range(0, tile, channels):
            for c in range(channels):
                out[taps - 1 - t if reverse else t, i + c] = w[c, t]
    return out


@njit(**OUTER)
def depthwise(codes, w, x_zero, kernel, stride, padding, size, tile, parts, bias, scale, y_zero, acc_shape, out, bits):
    """codes [N, H, W*C], w [C, KH*KW] int8 -> out [N, OH*OW*C] int8, bits: sums of int32, then as `rescale`.

    stride is the same both ways; tile: elements of a row at a time, whole pixels; parts: threads, at most N;
    acc_shape: (OH, OW*C).
    """
    channels, taps, block = w.shape[0], _taps(w, tile, False, np.int32), block_size(bias.size)
    shifts, biases, scales = np.zeros(block, np.int32), tiled(bias, block), tiled(scale, block)
    for p in prange(parts):
        # A thread's own buffers, whose border stays 0: fresh memory would cost more than the sums.
        image = np.zeros(_padded_shape(size, padding, stride, channels), np.int32)
        flat, offsets, step = image.reshape(-1), _offsets(image, kernel, channels), stride * image[0].size
        acc = np.empty(acc_shape, np.int32)
        for n in range(codes.shape[0] * p // parts, codes.shape[0] * (p + 1) // parts):
            _padded(codes[n], x_zero, padding, stride, channels, image)
            _depthwise(flat, taps, offsets, step, acc)
            rescale_image(acc.reshape(-1), shifts, biases, scales, y_zero, out[n], bits[n])


@njit(**INNER)
def _spread(h, taps, offsets, step, image):
    tile = taps.shape[1]
    for start in range(0, h.shape[1], tile):
        n = min(h.shape[1] - start, tile)
        for y in range(h.shape[0]):
            row, at = h[y, start : start + n], y * step + start
            for t in range(taps.shape[0]):
                a = at + offsets[t]
                _multiply_add(row, taps[t], image[a : a + n])


@njit(**INNER)
def _correlate(image, h, offsets, step, sums, out):
    tile, rows = sums.shape[1], h.shape[0] // 3 * 3
    sums[:] = 0
    for start in range(0, h.shape[1], tile):
        n = min(h.shape[1] - start, tile)
        for y in range(0, rows, 3):
            h0, h1, h2 = h[y, start : start + n], h[y + 1, start : start + n], h[y + 2, start : start + n]
            for t in range(sums.shape[0]):
                a = y * step + start + offsets[t]
                b, c = a + step, a + 2 * step
                _multiply_add_3(image[a : a + n], image[b : b + n], image[c : c + n], h0, h1, h2, sums[t])
        for y in range(rows, h.shape[0]):
            row = h[y, start : start + n]
            for t in range(sums.shape[0]):
                a = y * step + start + offsets[t]
                _multiply_add(image[a : a + n], row, sums[t])
    out[:] = 0
    for t in range(sums.shape[0]):
        fold(sums[t], out[t])


@njit(**INNER)
def _gradient_shape(rows, row, kernel, stride, padding, size, channels):
    if stride > 1:
        return _padded_shape(size, padding, stride, channels)
    return rows + 2 * (kernel[0] - 1 - padding[0]), 1, row + 2 * (kernel[1] - 1 - padding[1]) * channels


@njit(**INNER)
def _grad_input(h, taps, kernel, stride, padding, channels, image, dx):
    if stride > 1:
        flat, offsets = image.reshape(-1), _offsets(image, kernel, channels)
        flat[:] = 0
        _spread(h, taps, offsets, stride * image[0].size, flat)
        _unpadded(image, padding, stride, channels, dx)
        return
    # Without strides the gradient is a convolution too, with the taps in reverse: each sum is written once.
    top, left = kernel[0] - 1 - padding[0], (kernel[1] - 1 - padding[1]) * channels
    for y in range(h.shape[0]):
        image[y + top, 0, left : left + h.shape[1]] = h[y]
    _depthwise(image.reshape(-1), taps, _offsets(image, kernel, channels), image[0].size, dx)


@njit(**INNER)
def _pick(h, kept, channels, out):
    # h [OH, OW*C] -> out [OH, OW*K]: the kept channels.
    for y in range(h.shape[0]):
        for x in range(h.shape[1] // channels):
            for k in range(kept.size):
                out[y, x * kept.size + k] = h[y, x * channels + kept[k]]


@njit(**OUTER)
def depthwise_backward(g, bits, scale, w, codes, x_zero, kept, kernel, stride, padding, size, tiles, parts, dx, dw, db):
    """g [N, OH, OW*C], bits, scale [C] -> dx [N, H, W*C], dw [N, KH*KW, K] and db [N, C] float64, an image's each.

    w [C, KH*KW] float32 for dx; codes [N, H, W*K] int8 of the K kept channels for dw (`kept` empty: all).
    h = g * bit * scale; dx: each tap adds back where it read; tiles: of C channels, and of K.
    """
    channels, (_, oh, row) = scale.size, g.shape
    taps, scales = _taps(w, tiles[0], stride == 1, np.float32), tiled(scale, block_size(channels))
    some, picks = dw.shape[2], kept.size > 0
    for p in prange(parts):
        h, tile = np.empty((oh, row), np.float32), np.empty(scales.size, np.float32)
        image = np.zeros(_gradient_shape(oh, row, kernel, stride, padding, size, channels), np.float32)
        inputs = np.zeros(_padded_shape(size, padding, stride, some), np.float32)
        input_flat, input_offsets, input_step = (
            inputs.reshape(-1),
            _offsets(inputs, kernel, some),
            stride * inputs[0].size,
        )
        share = np.empty((oh if picks else 0, row // channels * some), np.float32)
        sums = np.empty((dw.shape[1], tiles[1]), np.float32)
        for n in range(g.shape[0] * p // parts, g.shape[0] * (p + 1) // parts):
            mask_image(g[n].reshape(-1), bits[n], scales, tile, h.reshape(-1), db[n])
            if dx.size:
                _grad_input(h, taps, kernel, stride, padding, channels, image, dx[n])
            if dw.size:
                if picks:
                    _pick(h, kept, channels, share)
                _padded(codes[n], x_zero, padding, stride, some, inputs)
                _correlate(input_flat, share if picks else h, input_offsets, input_step, sums, dw[n])
