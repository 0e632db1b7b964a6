"""What the operations of a kernel implementation are given beside their tensors, and what they give."""

from typing import NamedTuple

from torch import Tensor

from octo_exp.workload import Epilogue

# What a border holds; an output, and the mask of its epilogue.
Pad = Tensor | int
Masked = tuple[Tensor, Tensor | None]


class Finish(NamedTuple):
    """What becomes of a GEMM's sums: sums * scale + offset, then the epilogue; see each operation for the shapes."""

    scale: Tensor
    offset: Tensor | None = None
    steps: Epilogue | None = None

    @property
    def is_relu(self) -> bool:
        """Whether ReLU is all of the epilogue."""
        return self.steps is not None and self.steps.relu and self.steps.pool == 1


class Limits(NamedTuple):
    """What bounds codes (q_min, q_max) and their floats before they are rounded; seed: of the noise, None for none."""

    q_min: int
    q_max: int
    low: Tensor | None = None
    high: Tensor | None = None
    seed: int | None = None
