"""What follows a GEMM and is fused behind it: ReLU and max pooling."""

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
