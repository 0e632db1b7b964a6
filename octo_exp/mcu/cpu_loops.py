"""Compiled loops of the arithmetic `integer` on a CPU (numba): what stands between its GEMMs, and depthwise sums.

Arrays are flat or C-contiguous, images NHWC. Few channels make short loops, which no compiler makes fast; so constants
of a channel come tiled to a block of pixels, and a depthwise tap runs over a whole row of pixels. For that an image is
padded and its columns are sorted by their remainder on division by the stride: [rows, stride, columns, C], where every
tap reads one run. Work is split by images, never within one, and no result depends on the split. An argument of size 0
is not wanted. bits [N, bytes]: each image's begin a byte.
"""

import numpy as np
from numba import njit, prange

_INNER = {"cache": True, "error_model": "numpy"}
# A product and its sum in one rounding: exact for integers, closer for floats.
_FUSED = {"cache": True, "error_model": "numpy", "fastmath": {"contract"}}
_OUTER = {"cache": True, "error_model": "numpy", "parallel": True}
_LOW, _HIGH = np.float32(-128), np.float32(127)
# Elements of a block, at least: long loops, and what they touch stays in the first-level cache.
_BLOCK = 1024
_PART = 16_384
# Eight bytes of 0 or 1, read as one integer and multiplied by it, have their bits side by side in the highest byte.
_GATHER = np.uint64(0x0102040810204080)
# byte -> for each of its 8 bits all ones or all zeros, to be ANDed with a float's own bits.
_SELECT = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, -1, 0).astype(np.int32)


@njit(**_INNER)
def _pack(flags, bits):
    # flags: whole eights, 0 beyond the last element.
    eights = flags.view(np.uint64)
    for b in range(bits.size):
        bits[b] = np.uint8((eights[b] * _GATHER) >> np.uint64(56))


@njit(**_INNER)
def _tile(v, block):
    # [C] -> [block], v repeated.
    out = np.empty(block, v.dtype)
    for i in range(block // v.size):
        out[i * v.size : (i + 1) * v.size] = v
    return out


@njit(**_INNER)
def _block(channels):
    # A multiple of 8 and of the channels, of at least _BLOCK elements.
    return 8 * channels * ((_BLOCK + 8 * channels - 1) // (8 * channels))


@njit(**_INNER)
def _codes_of(x, codes):
    for i in range(x.size):
        # By way of int32: no vector instruction makes bytes of floats.
        codes[i] = np.int8(np.int32(np.rint(x[i])))


@njit(**_OUTER)
def codes_of(x, codes):
    """x [n] float32 -> codes [n] int8 = rint(x)."""
    for k in prange((x.size + _PART - 1) // _PART):
        part = slice(k * _PART, min(x.size, k * _PART + _PART))
        _codes_of(x[part], codes[part])


@njit(**_INNER)
def weights_of(w, codes):
    """w [n] float32 -> codes [n] int8 = rint(w); False where one does not fit, or is no number."""
    inside = True
    for i in range(w.size):
        v = np.rint(w[i])
        inside &= (v >= _LOW) & (v <= _HIGH)
        codes[i] = np.int8(np.int32(v))
    return inside


@njit(**_INNER)
def _centre(codes, zero, out):
    for i in range(codes.size):
        out[i] = np.int32(codes[i]) - zero


@njit(**_OUTER)
def centred(codes, zero, out):
    """codes [n] int8 -> out [n] float32 = code - zero."""
    for k in prange((codes.size + _PART - 1) // _PART):
        part = slice(k * _PART, min(codes.size, k * _PART + _PART))
        _centre(codes[part], np.int32(zero), out[part])


@njit(**_INNER)
def _rescale(acc, shift, bias, scale, zero, codes, flags):
    for i in range(acc.size):
        v = np.rint((np.float32(acc[i] - shift[i]) + bias[i]) * scale[i]) + zero
        flags[i] = (v >= _LOW) & (v <= _HIGH)
        v = _LOW if v < _LOW else v
        v = _HIGH if v > _HIGH else v
        codes[i] = np.int8(np.int32(v))


@njit(**_INNER)
def _rescale_image(acc, shift, bias, scale, zero, codes, bits):
    # shift, bias, scale: tiles of a block.
    block = bias.size
    flags = np.zeros(block, np.uint8)
    for start in range(0, acc.size, block):
        stop = min(acc.size, start + block)
        if stop - start < block:
            flags[:] = 0
        _rescale(acc[start:stop], shift, bias, scale, zero, codes[start:stop], flags)
        if bits.size:
            _pack(flags, bits[start // 8 : (stop + 7) // 8])


@njit(**_OUTER)
def rescale(acc, shift, bias, scale, zero, codes, bits):
    """acc [N, n], shift [C] integer -> codes [N, n] = clamp(rint((acc - shift + bias) * scale) + zero), bits inside.

    bias, scale [C] float32. The difference is exact, what follows is float32. bits: what the clamp passed.
    """
    block = _block(bias.size)
    shifts, biases, scales = _tile(shift, block), _tile(bias, block), _tile(scale, block)
    for k in prange(acc.shape[0]):
        _rescale_image(acc[k], shifts, biases, scales, zero, codes[k], bits[k])


@njit(**_INNER)
def _select(g, bits, select, h):
    whole = g.size // 8
    for b in range(whole):
        chosen = select[bits[b]]
        for k in range(8):
            h[b * 8 + k] = g[b * 8 + k] & chosen[k]
    for i in range(whole * 8, g.size):
        h[i] = g[i] & select[bits[whole], i - whole * 8]


@njit(**_INNER)
def _scale_and_sum(h, scale, sums):
    for i in range(h.size):
        h[i] = h[i] * scale[i]
        sums[i] += h[i]


@njit(**_INNER)
def _fold(tile, sums):
    # [pixels * C] -> added to sums [C].
    for i in range(tile.size // sums.size):
        for c in range(sums.size):
            sums[c] += tile[i * sums.size + c]


@njit(**_INNER)
def _mask_image(g, bits, scales, tile, h, sums):
    # scales: a tile of a block; tile: room for one; sums [C].
    block = scales.size
    tile[:] = 0
    source, target = g.view(np.int32), h.view(np.int32)
    for start in range(0, g.size, block):
        stop = min(g.size, start + block)
        _select(source[start:stop], bits[start // 8 :], _SELECT, target[start:stop])
        _scale_and_sum(h[start:stop], scales, tile)
    sums[:] = 0
    _fold(tile, sums)


@njit(**_OUTER)
def mask_and_scale(g, bits, scale, h, sums):
    """g [N, n], bits, scale [C] float32 -> h [N, n] = g * bit * scale; sums [N, C] float64: h summed over pixels."""
    scales = _tile(scale, _block(scale.size))
    for k in prange(g.shape[0]):
        _mask_image(g[k], bits[k], scales, np.empty(scales.size, np.float32), h[k], sums[k])


@njit(**_INNER)
def _padded(image, zero, padding, stride, channels, out):
    # image [H, W * C] int8 -> inside of out [H + 2p, stride, columns * C]: codes less their zero point.
    for y in range(image.shape[0]):
        if stride == 1:
            start = padding[1] * channels
            _centre(image[y], zero, out[y + padding[0], 0, start : start + image.shape[1]])
            continue
        for x in range(image.shape[1] // channels):
            at = x + padding[1]
            target = out[y + padding[0], at % stride, at // stride * channels : (at // stride + 1) * channels]
            _centre(image[y, x * channels : (x + 1) * channels], zero, target)


@njit(**_INNER)
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


@njit(**_INNER)
def _padded_shape(size, padding, stride, channels):
    return size[0] + 2 * padding[0], stride, (size[1] + 2 * padding[1] + stride - 1) // stride * channels


@njit(**_FUSED)
def _multiply_add(x, w, acc):
    for i in range(x.size):
        acc[i] += x[i] * w[i]


@njit(**_FUSED)
def _multiply_add_3(x0, x1, x2, w0, w1, w2, acc):
    for i in range(x0.size):
        acc[i] = acc[i] + x0[i] * w0[i] + x1[i] * w1[i] + x2[i] * w2[i]


@njit(**_INNER)
def _offsets(image, kernel, channels):
    # Where each tap reads in the flat image, for the output's first element.
    kh, kw = kernel
    _, stride, columns = image.shape
    out = np.empty(kh * kw, np.int64)
    for tap in range(kh * kw):
        i, j = tap // kw, tap % kw
        out[tap] = (i * stride + j % stride) * columns + j // stride * channels
    return out


@njit(**_INNER)
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


@njit(**_INNER)
def _taps(w, tile, reverse, dtype):
    # w [C, KH*KW] -> [KH*KW, tile]: each tap's weights once for each pixel of a tile; the last tap first in reverse.
    channels, taps = w.shape
    out = np.empty((taps, tile), dtype)
    for t in range(taps):
        for i in range(0, tile, channels):
            for c in range(channels):
                out[taps - 1 - t if reverse else t, i + c] = w[c, t]
    return out


@njit(**_OUTER)
def depthwise(codes, w, x_zero, kernel, stride, padding, size, tile, parts, bias, scale, y_zero, acc_shape, out, bits):
    """codes [N, H, W*C], w [C, KH*KW] int8 -> out [N, OH*OW*C] int8, bits: sums of int32, then as `rescale`.

    stride is the same both ways; tile: elements of a row at a time, whole pixels; parts: threads, at most N;
    acc_shape: (OH, OW*C).
    """
    channels, taps, block = w.shape[0], _taps(w, tile, False, np.int32), _block(bias.size)
    shifts, biases, scales = np.zeros(block, np.int32), _tile(bias, block), _tile(scale, block)
    for p in prange(parts):
        # A thread's own buffers, whose border stays 0: fresh memory would cost more than the sums.
        image = np.zeros(_padded_shape(size, padding, stride, channels), np.int32)
        flat, offsets, step = image.reshape(-1), _offsets(image, kernel, channels), stride * image[0].size
        acc = np.empty(acc_shape, np.int32)
        for n in range(codes.shape[0] * p // parts, codes.shape[0] * (p + 1) // parts):
            _padded(codes[n], x_zero, padding, stride, channels, image)
            _depthwise(flat, taps, offsets, step, acc)
            _rescale_image(acc.reshape(-1), shifts, biases, scales, y_zero, out[n], bits[n])


@njit(**_INNER)
def _spread(h, taps, offsets, step, image):
    tile = taps.shape[1]
    for start in range(0, h.shape[1], tile):
        n = min(h.shape[1] - start, tile)
        for y in range(h.shape[0]):
            row, at = h[y, start : start + n], y * step + start
            for t in range(taps.shape[0]):
                a = at + offsets[t]
                _multiply_add(row, taps[t], image[a : a + n])


@njit(**_INNER)
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
        _fold(sums[t], out[t])


@njit(**_INNER)
def _gradient_shape(rows, row, kernel, stride, padding, size, channels):
    if stride > 1:
        return _padded_shape(size, padding, stride, channels)
    return rows + 2 * (kernel[0] - 1 - padding[0]), 1, row + 2 * (kernel[1] - 1 - padding[1]) * channels


@njit(**_INNER)
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


@njit(**_INNER)
def _pick(h, kept, channels, out):
    # h [OH, OW*C] -> out [OH, OW*K]: the kept channels.
    for y in range(h.shape[0]):
        for x in range(h.shape[1] // channels):
            for k in range(kept.size):
                out[y, x * kept.size + k] = h[y, x * channels + kept[k]]


@njit(**_OUTER)
def depthwise_backward(g, bits, scale, w, codes, x_zero, kept, kernel, stride, padding, size, tiles, parts, dx, dw, db):
    """g [N, OH, OW*C], bits, scale [C] -> dx [N, H, W*C], dw [N, KH*KW, K] and db [N, C] float64, an image's each.

    w [C, KH*KW] float32 for dx; codes [N, H, W*K] int8 of the K kept channels for dw (`kept` empty: all).
    h = g * bit * scale; dx: each tap adds back where it read; tiles: of C channels, and of K.
    """
    channels, (_, oh, row) = scale.size, g.shape
    taps, scales = _taps(w, tiles[0], stride == 1, np.float32), _tile(scale, _block(channels))
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
            _mask_image(g[n].reshape(-1), bits[n], scales, tile, h.reshape(-1), db[n])
            if dx.size:
                _grad_input(h, taps, kernel, stride, padding, channels, image, dx[n])
            if dw.size:
                if picks:
                    _pick(h, kept, channels, share)
                _padded(codes[n], x_zero, padding, stride, some, inputs)
                _correlate(input_flat, share if picks else h, input_offsets, input_step, sums, dw[n])


@njit(**_OUTER)
def mask_and_scale_twice(g, bits, scale_1, scale_2, h_1, h_2):
    """g, h_1, h_2 [N, n], bits -> h_k = g * bit * scale_k."""
    for k in prange(g.shape[0]):
        source, first, second = g[k], h_1[k], h_2[k]
        _select(source.view(np.int32), bits[k], _SELECT, first.view(np.int32))
        for i in range(source.size):
            second[i] = first[i] * scale_2
            first[i] = first[i] * scale_1


@njit(**_INNER)
def _add(x1, x2, scales, zeros, y, flags):
    for i in range(x1.size):
        a, b = np.float32(x1[i]) - zeros[0], np.float32(x2[i]) - zeros[1]
        v = np.rint((a * scales[0] + b * scales[1]) / scales[2]) + zeros[2]
        flags[i] = (v >= _LOW) & (v <= _HIGH)
        v = _LOW if v < _LOW else v
        v = _HIGH if v > _HIGH else v
        y[i] = np.int8(np.int32(v))


@njit(**_OUTER)
def add(x1, x2, scales, zeros, y, bits):
    """x1, x2 [N, n] int8, scales, zeros [3] float32 -> y [N, n] int8 (see `ops.Add`), bits."""
    for k in prange(x1.shape[0]):
        flags = np.zeros(_BLOCK, np.uint8)
        for start in range(0, x1.shape[1], _BLOCK):
            stop = min(x1.shape[1], start + _BLOCK)
            if stop - start < _BLOCK:
                flags[:] = 0
            _add(x1[k, start:stop], x2[k, start:stop], scales, zeros, y[k, start:stop], flags)
            if bits.size:
                _pack(flags, bits[k, start // 8 : (stop + 7) // 8])
