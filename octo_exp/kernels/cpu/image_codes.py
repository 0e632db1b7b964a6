"""Float images to codes and codes to logits on a CPU: what stands before and after the integers."""

import numpy as np

from octo_exp.kernels.cpu.compiled import OUTER, njit, prange


@njit(**OUTER)
def quantize(x, scale, zero, low, high, out):
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
