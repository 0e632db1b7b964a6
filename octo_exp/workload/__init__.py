"""What a training step does, as values: GEMMs, work beside them, memory, and how a module states its own."""

from octo_exp.workload.account import (
    NORM_BACKWARD_OPS,
    NORM_OPS,
    QUANTIZE_OPS,
    RESCALE_OPS,
    Account,
    Accounts,
)
from octo_exp.workload.epilogue import Epilogue, bit_bytes, leaving
from octo_exp.workload.products import Product, gemms_of, trained_weights, work_of
from octo_exp.workload.training_step import AccountsForSteps, AccountsForUpdates, OptimizerCost, Record, Value
from octo_exp.workload.values import (
    BUFFER_KINDS,
    FLOAT_BYTES,
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
    "FLOAT_BYTES",
    "GRAD_INPUT_FORMS",
    "NORM_BACKWARD_OPS",
    "NORM_OPS",
    "QUANTIZE_OPS",
    "RESCALE_OPS",
    "ROLES",
    "VECTOR_KINDS",
    "WIDTHS",
    "Account",
    "Accounts",
    "AccountsForSteps",
    "AccountsForUpdates",
    "Buffer",
    "Epilogue",
    "Gemm",
    "OptimizerCost",
    "Product",
    "Record",
    "Value",
    "VectorWork",
    "Workload",
    "bit_bytes",
    "gemms_of",
    "leaving",
    "trained_weights",
    "work_of",
]
