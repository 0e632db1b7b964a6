"""Compiled loops of the arithmetic `integer` on a CPU (numba): what stands between its GEMMs, one pass each.

Arrays are flat or C-contiguous, images NHWC. Channels are few, so constants of a channel are tiled to a block of
pixels, whole vectors of 16. Work is split by images, never within one, and no result depends on the split. bits
[N, bytes]: each image's begin a byte; an argument of size 0 is not wanted.
"""

import numpy as np

from octo_exp.kernels.cpu.compiled import INNER, OUTER, njit, prange
from octo_exp.kernels.cpu.vectors import LANES, clamp, floats, load, rint, spread, store, where, within

# A step of a loop: inlined, so that a whole vector's length is known where it runs.
STEP = {"error_model": "numpy", "forceinline": True}
_LOW, _HIGH = np.float32(-128), np.float32(127)
# Elements of a block, at least: long loops, and what they touch stays in the first-level cache.
_BLOCK = 256
_PART = 16_384


@njit(**INNER)
def period_of(channels):
    """Return the elements after which channels and vectors begin together."""
    period = channels
    while period % LANES:
        period += channels
    return period


@njit(**INNER)
def block_size(channels):
    """Return a multiple of the period, of at least _BLOCK elements."""
    period = period_of(channels)
    return period * ((_BLOCK + period - 1) // period)


@njit(**INNER)
def tiled(v, block):
    """v [C] -> [block], repeated."""
    out = np.empty(block, v.dtype)
    for i in range(block // v.size):
        out[i * v.size : (i + 1) * v.size] = v
    return out


@njit(**STEP)
def _store_bits(inside, bits, i, n):
    inside &= (1 << n) - 1
    bits[i // 8] = inside
    if n > 8:
        bits[i // 8 + 1] = inside >> 8


@njit(**STEP)
def _load_bits(bits, i, n):
    return np.uint16(bits[i // 8]) | np.uint16(np.uint16(bits[i // 8 + 1]) << 8 if n > 8 else 0)


@njit(**INNER)
def _codes_of(x, codes):
    whole = x.size // LANES * LANES
    for i in range(0, whole, LANES):
        store(codes, i, LANES, rint(load(x, i, LANES)))
    store(codes, whole, x.size - whole, rint(load(x, whole, x.size - whole)))


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
        # By way of int32: no vector instruction makes bytes of floats.
        codes[i] = np.int8(np.int32(v))
    return inside


@njit(**INNER)
def row_sums(w, factor, out):
    """w [O, K] int8 -> out [O] int32 = factor times the sum of a row."""
    for o in range(w.shape[0]):
        total = np.int32(0)
        for k in range(w.shape[1]):
            total = np.int32(total + w[o, k])
        out[o] = factor * total


@njit(**INNER)
def centre(codes, zero, out):
    """codes [n] int8 -> out [n] float32 = code - zero."""
    zeros, whole = spread(np.float32(zero)), codes.size // LANES * LANES
    for i in range(0, whole, LANES):
        store(out, i, LANES, floats(load(codes, i, LANES)) - zeros)
    n = codes.size - whole
    store(out, whole, n, floats(load(codes, whole, n)) - zeros)


@njit(**OUTER)
def centred(codes, zero, out):
    """See `centre`."""
    for k in prange((codes.size + _PART - 1) // _PART):
        part = slice(k * _PART, min(codes.size, k * _PART + _PART))
        centre(codes[part], zero, out[part])


@njit(**STEP)
def _rescale(acc, shift, bias, scale, zero, codes, bits, i, j, n):
    low, high = spread(_LOW), spread(_HIGH)
    v = floats(load(acc, i, n) - load(shift, j, LANES)) + load(bias, j, LANES)
    v = rint(v * load(scale, j, LANES)) + zero
    store(codes, i, n, clamp(v, low, high))
    if bits.size:
        _store_bits(within(v, low, high), bits, i, n)


@njit(**INNER)
def rescale_image(acc, shift, bias, scale, zero, codes, bits):
    """See `rescale`, for one image; shift, bias, scale: tiles of a block."""
    block, whole, zeros = bias.size, acc.size // LANES * LANES, spread(np.float32(zero))
    for start in range(0, whole, block):
        for j in range(0, min(block, whole - start), LANES):
            _rescale(acc, shift, bias, scale, zeros, codes, bits, start + j, j, LANES)
    if whole < acc.size:
        _rescale(acc, shift, bias, scale, zeros, codes, bits, whole, whole % block, acc.size - whole)


@njit(**OUTER)
def rescale(acc, shift, bias, scale, zero, codes, bits):
    """acc [N, n], shift [C] -> codes [N, n] = clamp(rint((acc - shift + bias) * scale) + zero), bits inside.

    acc and shift int32 or float32, bias, scale [C] float32. The difference is exact, what follows is float32.
    bits: what the clamp passed.
    """
    block = block_size(bias.size)
    shifts, biases, scales = tiled(shift, block), tiled(bias, block), tiled(scale, block)
    for k in prange(acc.shape[0]):
        rescale_image(acc[k], shifts, biases, scales, zero, codes[k], bits[k])


@njit(**STEP)
def _mask(g, bits, scales, tile, h, i, j, n):
    v = where(_load_bits(bits, i, n), load(g, i, n)) * load(scales, j, LANES)
    store(h, i, n, v)
    store(tile, j, LANES, load(tile, j, LANES) + v)


@njit(**INNER)
def mask_image(g, bits, scales, tile, h, sums):
    """See `mask_and_scale`, for one image; scales: a tile of a block; tile: room for one; sums [C]."""
    block, whole = scales.size, g.size // LANES * LANES
    tile[:] = 0
    for start in range(0, whole, block):
        for j in range(0, min(block, whole - start), LANES):
            _mask(g, bits, scales, tile, h, start + j, j, LANES)
    if whole < g.size:
        _mask(g, bits, scales, tile, h, whole, whole % block, g.size - whole)
    sums[:] = 0
    fold(tile, sums)


@njit(**INNER)
def fold(tile, sums):
    """tile [pixels * C] is added to sums [C]."""
    for i in range(tile.size // sums.size):
        for c in range(sums.size):
            sums[c] += tile[i * sums.size + c]


@njit(**OUTER)
def mask_and_scale(g, bits, scale, h, sums):
    """g [N, n], bits, scale [C] float32 -> h [N, n] = g * bit * scale; sums [N, C] float64: h summed over pixels."""
    scales = tiled(scale, block_size(scale.size))
    for k in prange(g.shape[0]):
        mask_image(g[k], bits[k], scales, np.empty(scales.size, np.float32), h[k], sums[k])


@njit(**STEP)
def _mask_twice(g, bits, scale_1, scale_2, h_1, h_2, i, n):
    v = where(_load_bits(bits, i, n), load(g, i, n))
    store(h_1, i, n, v * scale_1)
    store(h_2, i, n, v * scale_2)


@njit(**INNER)
def _mask_image_twice(g, bits, scale_1, scale_2, h_1, h_2):
    scales, whole = (spread(np.float32(scale_1)), spread(np.float32(scale_2))), g.size // LANES * LANES
    for i in range(0, whole, LANES):
        _mask_twice(g, bits, *scales, h_1, h_2, i, LANES)
    if whole < g.size:
        _mask_twice(g, bits, *scales, h_1, h_2, whole, g.size - whole)


@njit(**OUTER)
def mask_and_scale_twice(g, bits, scale_1, scale_2, h_1, h_2):
    """g, h_1, h_2 [N, n], bits -> h_k = g * bit * scale_k."""
    for k in prange(g.shape[0]):
        _mask_image_twice(g[k], bits[k], scale_1, scale_2, h_1[k], h_2[k])


@njit(**STEP)
def _add(x1, x2, scales, zeros, y, bits, i, n):
    low, high = spread(_LOW), spread(_HIGH)
    a = (floats(load(x1, i, n)) - spread(zeros[0])) * spread(scales[0])
    b = (floats(load(x2, i, n)) - spread(zeros[1])) * spread(scales[1])
    v = rint((a + b) / spread(scales[2])) + spread(zeros[2])
    store(y, i, n, clamp(v, low, high))
    if bits.size:
        _store_bits(within(v, low, high), bits, i, n)


@njit(**INNER)
def _add_image(x1, x2, scales, zeros, y, bits):
    whole = x1.size // LANES * LANES
    for i in range(0, whole, LANES):
        _add(x1, x2, scales, zeros, y, bits, i, LANES)
    if whole < x1.size:
        _add(x1, x2, scales, zeros, y, bits, whole, x1.size - whole)


@njit(**OUTER)
def add(x1, x2, scales, zeros, y, bits):
    """x1, x2 [N, n] int8, scales, zeros [3] float32 -> y [N, n] int8 (see `ops.Add`), bits."""
    for k in prange(x1.shape[0]):
        _add_image(x1[k], x2[k], scales, zeros, y[k], bits[k])
