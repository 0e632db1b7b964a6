"""The doors through which codes reach the integer kernels, watched."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from octo_exp.kernels import fused

DOORS = (
    *("int8_conv2d_scaled", "int8_conv2d_grad_input_scaled", "int8_conv2d_grad_weight_scaled"),
    *("int8_matmul_scaled", "int8_matmul_grad_weight"),
)


@contextmanager
def watched_doors() -> Iterator[list[torch.dtype]]:
    """Collect the types of every pair of operands that reaches the kernels, whose results must be the reference's."""
    seen: list[torch.dtype] = []
    with pytest.MonkeyPatch.context() as patch:
        for door in DOORS:
            original = getattr(fused, door)

            def watch(a, b, *args, _original=original, **options):
                seen.extend((a.dtype, b.dtype))
                found, exact = (
                    _original(a, b, *args, **{**options, "impl": i}) for i in (options["impl"], "reference")
                )
                pairs = zip(found, exact, strict=True) if isinstance(found, tuple) else [(found, exact)]
                assert all(ours is theirs is None or torch.equal(ours, theirs) for ours, theirs in pairs)
                return found

            patch.setattr(fused, door, watch)
        yield seen
