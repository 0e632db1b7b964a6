"""What a kernel implementation can do: exact integers, and a layer's GEMMs with all that stands around them.

`Backend` has every operation in plain torch, for any device. A subclass overrides how integers are multiplied and what
it does in fewer passes over memory; all give the same bits. Images are [N, C, H, W], channels-last in memory; masks
have their channels last (see `masks`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from octo_exp.kernels.finish import Finish, Limits, Masked, Pad
from octo_exp.kernels.int8 import ConvGeometry, Products, check_conv2d, check_int8, dense_flat
from octo_exp.kernels.plain import lowering, masks
from octo_exp.kernels.plain.philox import uniform
from octo_exp.workload import Epilogue

# Elements a block on CPU: four float temporaries of 64 Ki elements fit a 2 MiB second-level cache.
BLOCK = 65_536


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """(q - zero_point) * scale as float32, of q's shape and layout; exact before the one rounding of the product."""
    return q.to(torch.float32).sub_(zero_point).mul_(scale)


def scale_accumulator(acc: Tensor, scale: Tensor, offset: Tensor | None, out: Tensor | None = None) -> Tensor:
    """acc [M, N] int32 or int64, scale scalar or [N], offset [N] or None -> acc * scale + offset, [M, N] float32.

    `out` [M, N] float32, when given, is written and returned. Block by block, so that temporaries stay in cache.
    """
    out = torch.empty(acc.shape, dtype=torch.float32, device=acc.device) if out is None else out
    rows = acc.shape[0] if acc.device.type != "cpu" else max(1, BLOCK // max(1, acc.shape[1]))
    for source, target in zip(torch.split(acc, rows), torch.split(out, rows), strict=True):
        torch.mul(source, scale, out=target)
        if offset is not None:
            target.add_(offset)
    return out


def _rows(t: Tensor) -> Tensor:
    return t.permute(0, 2, 3, 1) if t.dim() == 4 else t


def _scaled_images(acc: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    # Not a view of the rows: an in-place operation may follow.
    y = torch.empty(acc.shape, device=acc.device, memory_format=torch.channels_last)
    rows = [_rows(t).reshape(-1, acc.shape[1]) for t in (acc, y)]
    scale_accumulator(rows[0], scale, offset, out=rows[1])
    return y


class Backend(Products):
    """kernel=torch where there are no compiled loops, and what every other one is made of."""

    def int8_conv2d(self, x: Tensor, w: Tensor, geometry: ConvGeometry, *, pad_value: Pad = 0) -> Tensor:
        """x [N, C, H, W] int8, w [O, C/G, KH, KW] int8 -> [N, O, OH, OW] as `int8_matmul`, channels-last, exact.

        The border is filled with `pad_value`: the zero point, so that padding means real 0.
        """
        check_conv2d(x, w, geometry)
        return lowering.conv2d(x, w, geometry, pad_value, self.int8_matmul)

    def int8_conv2d_grad_input(self, g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry) -> Tensor:
        """g [N, O, OH, OW] int8, w [O, C/G, KH, KW] int8 -> [N, C, H, W] int32, exact; `size` is (H, W)."""
        check_int8(g=g, w=w)
        return lowering.conv2d_grad_input(g, w, size, geometry, self.int8_matmul)

    def int8_conv2d_grad_weight(
        self, x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, *, pad_value: Pad = 0
    ) -> Tensor:
        """x [N, C, H, W] int8, g [N, O, OH, OW] int8 -> [O, C/G, KH, KW], exact: K = N*OH*OW is split where needed."""
        check_int8(x=x, g=g)
        return lowering.conv2d_grad_weight(x, g, kernel, geometry, pad_value, self.int8_matmul)

    def quantize(self, t: Tensor, scale: Tensor, zero_point: Tensor, limits: Limits) -> Tensor:
        """q = clamp(round(clip(t, low, high) / scale) + zero_point, q_min, q_max) as int8, of t's shape and layout.

        scale and zero_point are scalars or broadcast against t. Rounding is to nearest even, or, given a seed, floor(.
        + noise) with `philox.uniform` noise: stochastic rounding. Element i draws from (seed, i); i is its place in
        memory where t is dense (see `dense_flat`), in logical order otherwise.
        """
        out, (q_min, q_max, low, high, seed) = torch.empty_like(t, dtype=torch.int8), limits

        def round_into(target: Tensor, source: Tensor, noise: Tensor | None) -> None:
            buffer = source / scale if low is None and high is None else torch.clamp(source, low, high).div_(scale)
            buffer = buffer.round_() if noise is None else buffer.add_(noise).floor_()
            target.copy_(buffer.add_(zero_point).clamp_(q_min, q_max))

        flat_t, flat_out = dense_flat(t), dense_flat(out)
        if flat_t is None or flat_out is None or scale.dim() > 0 or zero_point.dim() > 0:
            noise = None if seed is None else uniform(seed, t.numel(), t.device)
            if noise is not None:
                noise = noise.reshape(t.shape) if flat_t is None else noise.as_strided(t.shape, t.stride())
            round_into(out, t, noise)
            return out
        block = BLOCK if t.device.type == "cpu" else max(1, t.numel())
        for start in range(0, t.numel(), block):
            part = flat_t[start : start + block]
            noise = None if seed is None else uniform(seed, part.numel(), t.device, start)
            round_into(flat_out[start : start + block], part, noise)
        return out

    def activate(self, y: Tensor, steps: Epilogue) -> Masked:
        """y float -> (ReLU and pooling of y, mask); a pool of k gives [N, C, H//k, W//k].

        Mask: uint8 bits [..., ceil(C/8)] for ReLU alone (lowest bit first), int8 [N, H//k, W//k, C] for a pool: the
        maximum's place in its window, the first of equals, k*k where ReLU cut it; None for neither.
        """
        k = steps.pool
        if k == 1:
            return (F.relu(y), masks.pack_bits(_rows(masks.passes(y)))) if steps.relu else (y, None)
        n, c, h, w = y.shape
        windows = y[:, :, : h // k * k, : w // k * k].reshape(n, c, h // k, k, w // k, k).transpose(3, 4).flatten(4, 5)
        peak, index = windows.max(4)
        index = index.to(torch.int8)
        if steps.relu:
            index = torch.where(masks.passes(peak), index, torch.full_like(index, steps.dead))
            peak = F.relu(peak)
        return peak.contiguous(memory_format=torch.channels_last), _rows(index).contiguous()

    def mask_gradient(self, g: Tensor, mask: Tensor, steps: Epilogue) -> Tensor:
        """g, of the output's shape -> g where ReLU passed, else 0."""
        if steps.pool > 1 and not steps.relu:
            return g
        rows = _rows(g)
        passed = masks.unpack_bits(mask, rows.shape[-1]) if steps.pool == 1 else mask < steps.dead
        out = torch.where(passed, rows, 0.0)
        return out.permute(0, 3, 1, 2) if g.dim() == 4 else out

    def spread(self, t: Tensor, mask: Tensor, steps: Epilogue, size: tuple[int, int]) -> Tensor:
        """t [N, C, H//k, W//k], masked before -> [N, C, H, W]: t at the place of each window's maximum, 0 elsewhere."""
        k = steps.pool
        n, c, ph, pw = t.shape
        out = torch.zeros((n, c, *size), dtype=t.dtype, device=t.device).contiguous(memory_format=torch.channels_last)
        index = mask.permute(0, 3, 1, 2)
        for tap in range(k * k):
            out[:, :, tap // k : ph * k : k, tap % k : pw * k : k] = torch.where(index == tap, t, 0)
        return out

    def _finished(self, y: Tensor, steps: Epilogue | None) -> Masked:
        return (y, None) if steps is None else self.activate(y, steps)

    def scale_rows(self, acc: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        """acc [R, K] int32 or int64, scale a scalar, offset [R] or None -> acc*scale + offset, a row each, float32."""
        out = acc * scale
        return out if offset is None else out.add_(offset.unsqueeze(1))

    def matmul_scaled(self, a: Tensor, b: Tensor, finish: Finish) -> Masked:
        """a [M, K], b [K, N] int8, scale scalar or [N], offset [N] or None -> (activated a@b*scale + offset, mask)."""
        return self._finished(scale_accumulator(self.int8_matmul(a, b), finish.scale, finish.offset), finish.steps)

    def matmul_grad_weight(self, g: Tensor, x: Tensor, finish: Finish) -> Tensor:
        """g [M, O], x [M, I] int8, scale scalar, offset [O] or None -> g^T @ x * scale + offset a row each, [O, I]."""
        return self.scale_rows(self.int8_matmul(g.t(), x), finish.scale, finish.offset)

    def conv2d_scaled(self, x: Tensor, w: Tensor, geometry: ConvGeometry, pad_value: Pad, finish: Finish) -> Masked:
        """x [N, C, H, W], w [O, C/G, KH, KW] int8 -> (activated conv(x, w)*scale + offset, mask).

        The border of x is filled with `pad_value`; scale is a scalar or [O], offset [O], [O, OH, OW] or None.
        """
        acc, (scale, offset, steps) = self.int8_conv2d(x, w, geometry, pad_value=pad_value), finish
        if offset is not None and offset.dim() == 3:
            return self._finished(_scaled_images(acc, scale, None).add_(offset), steps)
        return self._finished(_scaled_images(acc, scale, offset), steps)

    def conv2d_grad_input_scaled(
        self, g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry, *, scale: Tensor
    ) -> Tensor:
        """g [N, O, OH, OW], w [O, C/G, KH, KW] int8, scale a scalar -> dx [N, C, H, W] float32; `size` is (H, W)."""
        return _scaled_images(self.int8_conv2d_grad_input(g, w, size, geometry), scale, None)

    def conv2d_grad_weight_scaled(
        self, x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, pad_value: Pad, finish: Finish
    ) -> Tensor:
        """x [N, C, H, W], g [N, O, OH, OW] int8, scale a scalar, offset [O] -> dw [O, C/G, KH, KW] float32."""
        acc = self.int8_conv2d_grad_weight(x, g, kernel, geometry, pad_value=pad_value)
        return self.scale_rows(acc.flatten(1), finish.scale, finish.offset).reshape(acc.shape)

    def float_conv2d(
        self, x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, steps: Epilogue | None
    ) -> Masked:
        """x [N, C, H, W], w [O, C/G, KH, KW], bias [O], float32 -> (activated conv(x, w) + bias, mask)."""
        y = F.conv2d(x, w, bias, *geometry.options)
        return self._finished(y, steps)

    def float_conv2d_grad_weight(
        self, x: Tensor, masked: Masked, steps: Epilogue | None, w_shape: torch.Size, geometry: ConvGeometry
    ) -> Tensor:
        """x [N, C, H, W]; g of the output's shape, masked, and the mask, float32 -> dw [O, C/G, KH, KW] float32."""
        g, mask = masked
        if mask is not None and steps is not None and steps.pool > 1:
            g = self.spread(g, mask, steps, geometry.output_size(x.shape[2], x.shape[3], (w_shape[2], w_shape[3])))
        dw: Tensor = conv2d_weight(x, w_shape, g, *geometry.options)
        return dw
