"""What follows a GEMM and is fused behind it: ReLU and max pooling."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """ReLU, then max pooling over windows of `pool` x `pool` that do not overlap (1 for none)."""

    relu: bool
    pool: int = 1

    def __post_init__(self) -> None:
        """Refuse windows whose places int8 cannot number."""
        if not 1 <= self.pool <= 11:
            raise ValueError(f"pool must be 1 to 11, got {self.pool}")

    @property
    def dead(self) -> int:
        """Return the index that says: ReLU cut this window, no gradient passes."""
        return self.pool * self.pool

    def mask_bytes(self, y_shape: tuple[int, ...]) -> int:
        """Bytes kept for the gradient of y: a bit an output, rows rounded up to bytes, or a byte a window."""
        if self.pool > 1:
            return math.prod(leaving(y_shape, self))
        return bit_bytes(y_shape) if self.relu else 0


def leaving(y_shape: tuple[int, ...], epilogue: Epilogue | None) -> tuple[int, ...]:
    """Shape of what an epilogue, or none, makes of y."""
    pool = 1 if epilogue is None else epilogue.pool
    return y_shape if pool == 1 else (*y_shape[:-2], y_shape[-2] // pool, y_shape[-1] // pool)


def bit_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a bit for each element, the channels of a position rounded up to bytes."""
    channels = shape[1] if len(shape) == 4 else shape[-1]
    return math.prod(shape) // channels * -(-channels // 8)
