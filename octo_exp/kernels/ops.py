"""The door to the kernels: `backend(impl, device_type)` has the operations, this module the values that they take.

impl names code that computes; there is no fallback from one to another, and integer results are bit-identical among
them. numba and Triton are imported where their backend is asked for.
"""

import functools
import importlib.util
import os

from octo_exp.base.errors import UserError
from octo_exp.base.homes import settle_triton
from octo_exp.kernels.backend import Backend, dequantize
from octo_exp.kernels.int8 import MAX_K, ConvGeometry, dense_flat

__all__ = ["IMPLEMENTATIONS", "MAX_K", "Backend", "ConvGeometry", "backend", "dense_flat", "dequantize", "resolve_impl"]

IMPLEMENTATIONS = ("reference", "torch", "triton")


@functools.cache
def backend(impl: str, device_type: str) -> Backend:
    """Return what computes under an implementation on tensors of a kind of device; UserError where there is none."""
    if impl == "reference":
        from octo_exp.kernels.plain.reference import Reference

        return Reference(device_type)
    if impl == "triton":
        from octo_exp.kernels.triton.backend import Triton

        return Triton(device_type)
    if impl != "torch":
        raise UserError(f"impl={impl!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
    if device_type != "cpu":
        return Backend(device_type)
    from octo_exp.kernels.cpu.backend import Cpu

    return Cpu(device_type)


def resolve_impl(name: str, device_type: str) -> str:
    """`auto` -> torch on CPU, triton on CUDA; any other name is checked against this machine.

    Raises UserError where the named implementation is unknown or cannot run on `device_type`.
    """
    if name == "auto":
        name = "triton" if device_type == "cuda" else "torch"
    if name not in IMPLEMENTATIONS:
        raise UserError(f"kernel implementation {name!r} is unknown; choose one of auto, {', '.join(IMPLEMENTATIONS)}")
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            raise UserError("kernel=triton needs Triton: pip install -e '.[triton]', or choose kernel=torch")
        if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise UserError(
                "kernel=triton needs a CUDA device, or its interpreter (set TRITON_INTERPRET=1); "
                "on a CPU choose kernel=torch"
            )
        if device_type == "cuda":
            settle_triton()
    return name
