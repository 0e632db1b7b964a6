"""A layer's three int8 GEMMs with all that stands around them: scales, offsets, ReLU, pooling and their masks.

Each operation has one plain torch form, exact integers of `api` between elementwise steps, and compiled forms of some
implementations (`_COMPILED`) that give the same numbers in fewer passes over memory. Images are [N, C, H, W],
channels-last in memory; masks have their channels last (see `epilogue`).
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from octo_exp.kernels import ops
from octo_exp.kernels.geometry import ConvGeometry
from octo_exp.kernels.plain import elementwise, masks
from octo_exp.workload import Epilogue

# (implementation, device) -> the module with compiled forms; what it lacks, or answers with None, runs in plain torch.
_COMPILED = {
    ("torch", "cpu"): "octo_exp.kernels.cpu.fused",
    ("triton", "cuda"): "octo_exp.kernels.triton.fused",
    # Triton's interpreter.
    ("triton", "cpu"): "octo_exp.kernels.triton.fused",
}


@functools.cache
def _compiled(impl: str, device: str, name: str) -> Callable[..., Any] | None:
    module = _COMPILED.get((impl, device))
    form: Callable[..., Any] | None = None if module is None else getattr(importlib.import_module(module), name, None)
    return form


def quantize(t: Tensor, scale: Tensor, zero_point: Tensor, *, impl: str, **options: Any) -> Tensor:
    """See `elementwise.quantize`: the same codes, by the implementation's own loop where it has one."""
    compiled = _compiled(impl, t.device.type, "quantize")
    codes = None if compiled is None else compiled(t, scale, zero_point, **options)
    return elementwise.quantize(t, scale, zero_point, **options) if codes is None else codes


def activate(y: Tensor, steps: Epilogue, *, impl: str) -> tuple[Tensor, Tensor | None]:
    """y float -> (ReLU and pooling of y, mask); a pool of k gives [N, C, H//k, W//k].

    Mask: uint8 bits [..., ceil(C/8)] for ReLU alone (lowest bit first), int8 [N, H//k, W//k, C] for a pool: the
    maximum's place in its window, the first of equals, k*k where ReLU cut it; None for neither.
    """
    return (_compiled(impl, y.device.type, "activate") or masks.activate)(y, steps)


def mask_gradient(g: Tensor, mask: Tensor, steps: Epilogue, *, impl: str) -> Tensor:
    """g, of the output's shape -> g where ReLU passed, else 0."""
    return (_compiled(impl, g.device.type, "mask_gradient") or masks.mask_gradient)(g, mask, steps)


def spread(t: Tensor, mask: Tensor, steps: Epilogue, size: tuple[int, int], *, impl: str) -> Tensor:
    """t [N, C, H//k, W//k], masked before -> [N, C, H, W]: t at the place of each window's maximum, 0 elsewhere."""
    return (_compiled(impl, t.device.type, "spread") or masks.spread)(t, mask, steps, size)


def _finished(y: Tensor, steps: Epilogue | None, impl: str) -> tuple[Tensor, Tensor | None]:
    return (y, None) if steps is None else activate(y, steps, impl=impl)


def int8_matmul_scaled(
    a: Tensor, b: Tensor, scale: Tensor, offset: Tensor | None, steps: Epilogue | None = None, *, impl: str
) -> tuple[Tensor, Tensor | None]:
    """a [M, K], b [K, N] int8, scale scalar or [N], offset [N] or None -> (activated a@b*scale + offset, mask)."""
    compiled = _compiled(impl, a.device.type, "matmul_scaled")
    if compiled is not None and a.shape[1] <= ops.MAX_K:
        ops.check_int8(a=a, b=b)
        return compiled(a, b, scale, offset, steps)
    y = elementwise.scale_accumulator(ops.int8_matmul(a, b, impl=impl), scale, offset)
    return _finished(y, steps, impl)


def int8_matmul_grad_weight(g: Tensor, x: Tensor, scale: Tensor, offset: Tensor | None, *, impl: str) -> Tensor:
    """g [M, O], x [M, I] int8, scale scalar, offset [O] or None -> g^T @ x * scale + offset (a row each), [O, I]."""
    compiled = _compiled(impl, g.device.type, "matmul_grad_weight")
    if compiled is not None and 0 < g.shape[0] <= ops.MAX_K:
        ops.check_int8(g=g, x=x)
        dw: Tensor = compiled(g, x, scale, offset)
        return dw
    return _scaled_rows(ops.int8_matmul(g.t(), x, impl=impl), scale, offset, impl)


def _scaled_rows(acc: Tensor, scale: Tensor, offset: Tensor | None, impl: str) -> Tensor:
    compiled = _compiled(impl, acc.device.type, "scale_rows")
    if compiled is not None and acc.dtype == torch.int32:
        scaled: Tensor = compiled(acc, scale, offset)
        return scaled
    out = acc * scale
    return out if offset is None else out.add_(offset.unsqueeze(1))


def _can_fuse(geometry: ConvGeometry, operand: Tensor, sum_length: int = 0) -> bool:
    return geometry.groups == 1 and operand.numel() > 0 and sum_length <= ops.MAX_K


def int8_conv2d_scaled(
    x: Tensor,
    w: Tensor,
    geometry: ConvGeometry,
    *,
    pad_value: Tensor | int,
    scale: Tensor,
    offset: Tensor | None,
    steps: Epilogue | None,
    impl: str,
) -> tuple[Tensor, Tensor | None]:
    """x [N, C, H, W], w [O, C/G, KH, KW] int8 -> (activated conv(x, w)*scale + offset, mask).

    The border of x is filled with `pad_value`; scale is a scalar or [O], offset [O], [O, OH, OW] or None.
    """
    if offset is not None and offset.dim() == 3:
        offset = offset.permute(1, 2, 0).reshape(-1, w.shape[0])
    compiled = _compiled(impl, x.device.type, "conv2d_scaled")
    if compiled is not None and _can_fuse(geometry, x, w[0].numel()):
        ops.check_int8(x=x, w=w)
        return compiled(x, w, geometry, pad_value, scale, offset, steps)
    acc = ops.int8_conv2d(x, w, geometry, pad_value=pad_value, impl=impl)
    y = _scaled_images(acc, scale, None if offset is None or offset.dim() == 2 else offset)
    if offset is not None and offset.dim() == 2:
        y += offset.t().reshape(y.shape[1:])
    return _finished(y, steps, impl)


def _scaled_images(acc: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    # Not a view of the rows: an in-place operation may follow.
    y = torch.empty(acc.shape, device=acc.device, memory_format=torch.channels_last)
    rows = [t.permute(0, 2, 3, 1).reshape(-1, acc.shape[1]) for t in (acc, y)]
    elementwise.scale_accumulator(rows[0], scale, offset, out=rows[1])
    return y


def int8_conv2d_grad_input_scaled(
    g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry, *, scale: Tensor, impl: str
) -> Tensor:
    """g [N, O, OH, OW], w [O, C/G, KH, KW] int8, scale a scalar -> dx [N, C, H, W] float32; `size` is (H, W)."""
    compiled = _compiled(impl, g.device.type, "conv2d_grad_input_scaled")
    if compiled is not None and _can_fuse(geometry, g, w.numel() // w.shape[1]):
        ops.check_int8(g=g, w=w)
        return compiled(g, w, size, geometry, scale)
    return _scaled_images(ops.int8_conv2d_grad_input(g, w, size, geometry, impl=impl), scale, None)


def int8_conv2d_grad_weight_scaled(
    x: Tensor,
    g: Tensor,
    kernel: tuple[int, int],
    geometry: ConvGeometry,
    *,
    pad_value: Tensor | int,
    scale: Tensor,
    offset: Tensor | None,
    impl: str,
) -> Tensor:
    """x [N, C, H, W], g [N, O, OH, OW] int8, scale a scalar, offset [O] -> dw [O, C/G, KH, KW] float32."""
    compiled = _compiled(impl, x.device.type, "conv2d_grad_weight_scaled")
    # Images are summed apart, so one image's sum must fit.
    if compiled is not None and _can_fuse(geometry, g, g.shape[2] * g.shape[3]):
        ops.check_int8(x=x, g=g)
        dw: Tensor | None = compiled(x, g, kernel, geometry, pad_value, scale, offset)
        if dw is not None:
            return dw
    acc = ops.int8_conv2d_grad_weight(x, g, kernel, geometry, pad_value=pad_value, impl=impl)
    return _scaled_rows(acc.flatten(1), scale, offset, impl).reshape(acc.shape)


def float_conv2d(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, steps: Epilogue | None, *, impl: str
) -> tuple[Tensor, Tensor | None]:
    """x [N, C, H, W], w [O, C/G, KH, KW], bias [O], float32 -> (activated conv(x, w) + bias, mask)."""
    compiled = _compiled(impl, x.device.type, "conv2d_scaled")
    if compiled is not None and geometry.groups == 1:
        return compiled(x.detach(), w.detach(), geometry, 0, torch.ones(()), bias, steps)
    y = F.conv2d(x, w, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    return _finished(y, steps, impl)


def float_conv2d_grad_weight(
    x: Tensor,
    g: Tensor,
    mask: Tensor | None,
    steps: Epilogue | None,
    w_shape: torch.Size,
    geometry: ConvGeometry,
    *,
    impl: str,
) -> Tensor:
    """x [N, C, H, W] and g, masked, of the output's shape, float32 -> dw [O, C/G, KH, KW] float32."""
    kernel = (w_shape[2], w_shape[3])
    compiled = _compiled(impl, x.device.type, "float_conv2d_grad_weight")
    if compiled is not None and geometry.groups == 1:
        return compiled(x, g, mask, steps, kernel, geometry)
    if steps is not None and steps.pool > 1:
        g = spread(g, mask, steps, geometry.output_size(x.shape[2], x.shape[3], kernel), impl=impl)
    return conv2d_weight(x, w_shape, g, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
