"""The doors through which codes reach the integer kernels, watched."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from octo_exp.kernels.ops import Backend, backend

DOORS = (
    *("conv2d_scaled", "conv2d_grad_input_scaled", "conv2d_grad_weight_scaled"),
    *("matmul_scaled", "matmul_grad_weight"),
)


@contextmanager
def watched_doors() -> Iterator[list[torch.dtype]]:
    """Collect the types of every pair of operands that reaches the kernels, whose results must be the reference's."""
    seen: list[torch.dtype] = []
    reference = backend("reference", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        for door, kind in itertools.product(DOORS, (type(backend("torch", "cpu")), Backend)):
            original = getattr(kind, door)

            def watch(self, a, b, *args, _door=door, _original=original, **options):
                seen.extend((a.dtype, b.dtype))
                found = _original(self, a, b, *args, **options)
                if self is not reference:
                    exact = getattr(reference, _door)(a, b, *args, **options)
                    pairs = zip(found, exact, strict=True) if isinstance(found, tuple) else [(found, exact)]
                    assert all(ours is theirs is None or torch.equal(ours, theirs) for ours, theirs in pairs)
                return found

            patch.setattr(kind, door, watch)
        yield seen
