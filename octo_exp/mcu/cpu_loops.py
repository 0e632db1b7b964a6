"""Compiled loops of the arithmetic `integer` on a CPU (numba): what stands between its GEMMs, one pass each.

Arrays are flat or C-contiguous, images NHWC. Few channels make short loops, which no compiler makes fast; so constants
of a channel are tiled to a block of pixels. Work is split by images, never within one, and no result depends on the
split. bits [N, bytes]: each image's begin a byte; an argument of size 0 is not wanted.
"""

import numpy as np
from numba import njit, prange

INNER = {"cache": True, "error_model": "numpy"}
OUTER = {"cache": True, "error_model": "numpy", "parallel": True}
_LOW, _HIGH = np.float32(-128), np.float32(127)
# Elements of a block, at least: long loops, and what they touch stays in the first-level cache.
_BLOCK = 1024
_PART = 16_384
# Eight bytes of 0 or 1, read as one integer and multiplied by it, have their bits side by side in the highest byte.
_GATHER = np.uint64(0x0102040810204080)
# byte -> for each of its 8 bits all ones or all zeros, to be ANDed with a float's own bits.
_SELECT = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, -1, 0).astype(np.int32)


@njit(**INNER)
def _pack(flags, bits):
    # flags: whole eights, 0 beyond the last element.
    eights = flags.view(np.uint64)
    for b in range(bits.size):
        bits[b] = np.uint8((eights[b] * _GATHER) >> np.uint64(56))


@njit(**INNER)
def tiled(v, block):
    """v [C] -> [block], repeated."""
    out = np.empty(block, v.dtype)
    for i in range(block // v.size):
        out[i * v.size : (i + 1) * v.size] = v
    return out


@njit(**INNER)
def block_size(channels):
    """Return a multiple of 8 and of the channels, of at least _BLOCK elements."""
    return 8 * channels * ((_BLOCK + 8 * channels - 1) // (8 * channels))


@njit(**INNER)
def _codes_of(x, codes):
    for i in range(x.size):
        # By way of int32: no vector instruction makes bytes of floats.
        codes[i] = np.int8(np.int32(np.rint(x[i])))


@njit(**OUTER)
def codes_of(x, codes):
    """x [n] float32 -> codes [n] int8 = rint(x)."""
    for k in prange((x.size + _PART - 1) // _PART):
        part = slice(k * _PART, min(x.size, k * _PART + _PART))
        _codes_of(x[part], codes[part])


@njit(**INNER)
def weights_of(w, codes):
    """w [n] float32 -> codes [n] int8 = rint(w); False where one does not fit, or is no number."""
    inside = True
    for i in range(w.size):
        v = np.rint(w[i])
        inside &= (v >= _LOW) & (v <= _HIGH)
        codes[i] = np.int8(np.int32(v))
    return inside


@njit(**INNER)
def centre(codes, zero, out):
    """codes [n] int8 -> out [n] = code - zero."""
    for i in range(codes.size):
        out[i] = np.int32(codes[i]) - zero


@njit(**OUTER)
def centred(codes, zero, out):
    """codes [n] int8 -> out [n] float32 = code - zero."""
    for k in prange((codes.size + _PART - 1) // _PART):
        part = slice(k * _PART, min(codes.size, k * _PART + _PART))
        centre(codes[part], np.int32(zero), out[part])


@njit(**INNER)
def _rescale(acc, shift, bias, scale, zero, codes, flags):
    for i in range(acc.size):
        v = np.rint((np.float32(acc[i] - shift[i]) + bias[i]) * scale[i]) + zero
        flags[i] = (v >= _LOW) & (v <= _HIGH)
        v = _LOW if v < _LOW else v
        v = _HIGH if v > _HIGH else v
        codes[i] = np.int8(np.int32(v))


@njit(**INNER)
def rescale_image(acc, shift, bias, scale, zero, codes, bits):
    """See `rescale`, for one image; shift, bias, scale: tiles of a block."""
    block = bias.size
    flags = np.zeros(block, np.uint8)
    for start in range(0, acc.size, block):
        stop = min(acc.size, start + block)
        if stop - start < block:
            flags[:] = 0
        _rescale(acc[start:stop], shift, bias, scale, zero, codes[start:stop], flags)
        if bits.size:
            _pack(flags, bits[start // 8 : (stop + 7) // 8])


@njit(**OUTER)
def rescale(acc, shift, bias, scale, zero, codes, bits):
    """acc [N, n], shift [C] integer -> codes [N, n] = clamp(rint((acc - shift + bias) * scale) + zero), bits inside.

    bias, scale [C] float32. The difference is exact, what follows is float32. bits: what the clamp passed.
    """
    block = block_size(bias.size)
    shifts, biases, scales = tiled(shift, block), tiled(bias, block), tiled(scale, block)
    for k in prange(acc.shape[0]):
        rescale_image(acc[k], shifts, biases, scales, zero, codes[k], bits[k])


@njit(**INNER)
def _select(g, bits, select, h):
    whole = g.size // 8
    for b in range(whole):
        chosen = select[bits[b]]
        for k in range(8):
            h[b * 8 + k] = g[b * 8 + k] & chosen[k]
    for i in range(whole * 8, g.size):
        h[i] = g[i] & select[bits[whole], i - whole * 8]


@njit(**INNER)
def _scale_and_sum(h, scale, sums):
    for i in range(h.size):
        h[i] = h[i] * scale[i]
        sums[i] += h[i]


@njit(**INNER)
def fold(tile, sums):
    """tile [pixels * C] is added to sums [C]."""
    for i in range(tile.size // sums.size):
        for c in range(sums.size):
            sums[c] += tile[i * sums.size + c]


@njit(**INNER)
def mask_image(g, bits, scales, tile, h, sums):
    """See `mask_and_scale`, for one image; scales: a tile of a block; tile: room for one; sums [C]."""
    block = scales.size
    tile[:] = 0
    source, target = g.view(np.int32), h.view(np.int32)
    for start in range(0, g.size, block):
        stop = min(g.size, start + block)
        _select(source[start:stop], bits[start // 8 :], _SELECT, target[start:stop])
        _scale_and_sum(h[start:stop], scales, tile)
    sums[:] = 0
    fold(tile, sums)


@njit(**OUTER)
def mask_and_scale(g, bits, scale, h, sums):
    """g [N, n], bits, scale [C] float32 -> h [N, n] = g * bit * scale; sums [N, C] float64: h summed over pixels."""
    scales = tiled(scale, block_size(scale.size))
    for k in prange(g.shape[0]):
        mask_image(g[k], bits[k], scales, np.empty(scales.size, np.float32), h[k], sums[k])


@njit(**OUTER)
def mask_and_scale_twice(g, bits, scale_1, scale_2, h_1, h_2):
    """g, h_1, h_2 [N, n], bits -> h_k = g * bit * scale_k."""
    for k in prange(g.shape[0]):
        source, first, second = g[k], h_1[k], h_2[k]
        _select(source.view(np.int32), bits[k], _SELECT, first.view(np.int32))
        for i in range(source.size):
            second[i] = first[i] * scale_2
            first[i] = first[i] * scale_1


@njit(**INNER)
def _add(x1, x2, scales, zeros, y, flags):
    for i in range(x1.size):
        a, b = np.float32(x1[i]) - zeros[0], np.float32(x2[i]) - zeros[1]
        v = np.rint((a * scales[0] + b * scales[1]) / scales[2]) + zeros[2]
        flags[i] = (v >= _LOW) & (v <= _HIGH)
        v = _LOW if v < _LOW else v
        v = _HIGH if v > _HIGH else v
        y[i] = np.int8(np.int32(v))


@njit(**OUTER)
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
