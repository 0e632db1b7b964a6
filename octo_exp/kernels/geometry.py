"""The shape of a convolution: what every convolution kernel needs to know beside its tensors."""

from dataclasses import dataclass

# The longest sum that fits int32 whatever the codes: K * 128 * 128 <= 2^31 - 1.
MAX_K = (2**31 - 1) // (128 * 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvGeometry:
    """Stride, zero padding, dilation (height, width) and groups of a 2-D convolution."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output_size(self, height: int, width: int, kernel: tuple[int, int]) -> tuple[int, int]:
        """Spatial size of the output: floor((H + 2p - d(k-1) - 1) / s) + 1 per dimension."""
        sizes = []
        for extent, k, s, p, d in zip((height, width), kernel, self.stride, self.padding, self.dilation, strict=True):
            sizes.append((extent + 2 * p - d * (k - 1) - 1) // s + 1)
        if min(sizes) < 1:
            raise ValueError(f"input {height}x{width} is smaller than kernel {kernel} with {self}")
        return sizes[0], sizes[1]
