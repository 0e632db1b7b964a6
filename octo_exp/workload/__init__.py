"""What a training step does, as values: GEMMs, work beside them, memory, and how a module states its own."""

from octo_exp.workload.epilogue import Epilogue
from octo_exp.workload.values import (
    BUFFER_KINDS,
    GRAD_INPUT_FORMS,
    ROLES,
    VECTOR_KINDS,
    WIDTHS,
    Buffer,
    Gemm,
    VectorWork,
    Workload,
)

__all__ = [
    "BUFFER_KINDS",
    "GRAD_INPUT_FORMS",
    "ROLES",
    "VECTOR_KINDS",
    "WIDTHS",
    "Buffer",
    "Epilogue",
    "Gemm",
    "VectorWork",
    "Workload",
]
