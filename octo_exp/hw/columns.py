"""A workload as columns of whole numbers, for the vectorized model."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octo_exp.hw.exact import LIMIT, refusal
from octo_exp.workload import WIDTHS, Gemm, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmArrays:
    """The GEMMs of a workload as columns, int64 of shape [L], for the vectorized model; `width` holds 0 int8, 1, 2."""

    m: NDArray[np.int64]
    n: NDArray[np.int64]
    k: NDArray[np.int64]
    count: NDArray[np.int64]
    elements_a: NDArray[np.int64]
    elements_b: NDArray[np.int64]
    elements_out: NDArray[np.int64]
    bytes_a: NDArray[np.int64]
    bytes_b: NDArray[np.int64]
    bytes_out: NDArray[np.int64]
    width: NDArray[np.int64]

    @property
    def macs(self) -> NDArray[np.int64]:
        """Multiply-accumulates of each GEMM, `count` products together."""
        return self.m * self.n * self.k * self.count


def gemm_arrays(workload: Workload) -> GemmArrays:
    """The GEMMs of a workload as columns; an element of 8 bits or fewer takes a byte.

    Raises:
        UserError: a GEMM of 2**53 MACs or more, which cannot be priced exactly.

    """
    check_macs(workload.gemms)
    extents = ("m", "n", "k", "count", "elements_a", "elements_b", "elements_out")
    names = (*extents, "bits_a", "bits_b", "bits_out")
    rows = [tuple(getattr(gemm, name) for name in names) for gemm in workload.gemms]
    # The type is named because an empty workload would become an array of floats.
    columns = dict(zip(names, np.array(rows, np.int64).reshape(-1, len(names)).T, strict=True))
    for operand in ("a", "b", "out"):
        columns[f"bytes_{operand}"] = -(-columns.pop(f"bits_{operand}") // 8)
    width = np.array([WIDTHS.index(gemm.width) for gemm in workload.gemms], np.int64)
    return GemmArrays(width=width, **columns)


def vector_arrays(workload: Workload) -> NDArray[np.int64]:
    """Operations, bytes read and written of the vector unit's work, [3, V]; `UserError` from 2**53 on."""
    for work in workload.vector:
        for unit, count in (("operations", work.operations), ("bytes", work.bytes_read + work.bytes_written)):
            if count >= LIMIT:
                raise refusal(count, unit, "batch_size", f"in layer {work.layer!r}")
    columns = [(work.operations, work.bytes_read, work.bytes_written) for work in workload.vector]
    return np.array(columns, np.int64).reshape(-1, 3).T


def check_macs(gemms: Iterable[Gemm]) -> None:
    """Raise `UserError` where a GEMM is too large for every count of it to be exact."""
    for gemm in gemms:
        if gemm.largest >= LIMIT:
            raise refusal(gemm.largest, "MACs", "batch_size, or the sizes of the layer", f"in layer {gemm.layer!r}")
