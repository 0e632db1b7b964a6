"""Public integer operations: check the arguments, choose the implementation, split what could overflow.

`impl` is one of `IMPLEMENTATIONS`; there is no fallback from one to another. Integer results are bit-identical among
them. Where a sum of products could pass 2^31 - 1, K is split and the partial sums are added in int64: an int8 matmul
that wraps does so silently.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.base.homes import settle_triton
from octo_exp.kernels.geometry import MAX_K, ConvGeometry
from octo_exp.kernels.plain import depthwise, lowering, reference, torch_int8
from octo_exp.kernels.plain.elementwise import dequantize, quantize, scale_accumulator

__all__ = [
    "IMPLEMENTATIONS",
    "MAX_K",
    "ConvGeometry",
    "check_int8",
    "dequantize",
    "int8_conv2d",
    "int8_conv2d_grad_input",
    "int8_conv2d_grad_weight",
    "int8_matmul",
    "products",
    "quantize",
    "resolve_impl",
    "scale_accumulator",
]

# name -> module; a new implementation is one file and one line here.
IMPLEMENTATIONS = {
    "reference": "octo_exp.kernels.plain.reference",
    "torch": "octo_exp.kernels.plain.torch_int8",
    "triton": "octo_exp.kernels.triton.gemm",
}


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


def products(impl: str, device_type: str) -> str:
    """Name what multiplies int8 codes under an implementation on this machine; all give the same integers."""
    if impl == "torch":
        return torch_int8.products(device_type)
    return {"reference": "float64, exact", "triton": "int8 (Triton)"}[impl]


@functools.cache
def _module(impl: str) -> ModuleType:
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"impl={impl!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
    return importlib.import_module(IMPLEMENTATIONS[impl])


def check_int8(**tensors: Tensor) -> None:
    """Raise TypeError where one of the named tensors is not int8."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int8:
            raise TypeError(f"{name} must be int8, got {tensor.dtype}")


def int8_matmul(a: Tensor, b: Tensor, *, impl: str) -> Tensor:
    """a [M, K] int8, b [K, N] int8 -> [M, N], exact: int32, or int64 where K > MAX_K (K is split there)."""
    check_int8(a=a, b=b)
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"shapes must be [M, K] and [K, N], got {tuple(a.shape)} and {tuple(b.shape)}")
    k = a.shape[1]
    multiply: Callable[[Tensor, Tensor], Tensor] = _module(impl).matmul
    if k <= MAX_K:
        return multiply(a, b).to(torch.int32)
    parts = range(0, k, MAX_K)
    return sum(
        (multiply(a[:, i : i + MAX_K], b[i : i + MAX_K]).to(torch.int64) for i in parts),
        start=torch.zeros((), dtype=torch.int64, device=a.device),
    )


def _narrowed(acc: Tensor, k: int) -> Tensor:
    """Return sums of k products in the type that the split product gives."""
    return acc.to(torch.int32) if k <= MAX_K else acc


def _is_depthwise(weight_channels: int, geometry: ConvGeometry) -> bool:
    return geometry.groups > 1 and weight_channels == 1


def int8_conv2d(x: Tensor, w: Tensor, geometry: ConvGeometry, *, pad_value: Tensor | int = 0, impl: str) -> Tensor:
    """x [N, C, H, W] int8, w [O, C/G, KH, KW] int8 -> [N, O, OH, OW] int32, channels-last, exact.

    The border is filled with `pad_value`: the zero point, so that padding means real 0.
    """
    check_int8(x=x, w=w)
    if x.shape[1] != w.shape[1] * geometry.groups:
        raise ValueError(f"x has {x.shape[1]} channels, w wants {w.shape[1]} x {geometry.groups} groups")
    if impl == "reference":
        return _narrowed(reference.conv2d(x, w, geometry, pad_value), w[0].numel())
    if _is_depthwise(w.shape[1], geometry):
        return depthwise.conv2d(x, w, geometry, pad_value)
    return lowering.conv2d(x, w, geometry, pad_value, functools.partial(int8_matmul, impl=impl))


def int8_conv2d_grad_input(g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry, *, impl: str) -> Tensor:
    """g [N, O, OH, OW] int8, w [O, C/G, KH, KW] int8 -> [N, C, H, W] int32, exact; `size` is (H, W)."""
    check_int8(g=g, w=w)
    if impl == "reference":
        k = w.shape[0] // geometry.groups * w.shape[2] * w.shape[3]
        return _narrowed(reference.conv2d_grad_input(g, w, size, geometry), k)
    if _is_depthwise(w.shape[1], geometry):
        return depthwise.conv2d_grad_input(g, w, size, geometry)
    return lowering.conv2d_grad_input(g, w, size, geometry, functools.partial(int8_matmul, impl=impl))


def int8_conv2d_grad_weight(
    x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, *, pad_value: Tensor | int = 0, impl: str
) -> Tensor:
    """x [N, C, H, W] int8, g [N, O, OH, OW] int8 -> [O, C/G, KH, KW], exact: K = N*OH*OW is split where needed."""
    check_int8(x=x, g=g)
    if impl == "reference":
        return reference.conv2d_grad_weight(x, g, kernel, geometry, pad_value)
    if _is_depthwise(x.shape[1] // geometry.groups, geometry):
        return depthwise.conv2d_grad_weight(x, g, kernel, geometry, pad_value)
    matmul = functools.partial(int8_matmul, impl=impl)
    return lowering.conv2d_grad_weight(x, g, kernel, geometry, pad_value, matmul)
