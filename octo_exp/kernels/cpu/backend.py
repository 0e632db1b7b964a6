"""kernel=torch on a CPU: int8 GEMMs of torch between compiled loops, one pass over memory each."""

import numpy as np
import torch
from torch import Tensor

from octo_exp.kernels.backend import Backend
from octo_exp.kernels.cpu import conv, loops
from octo_exp.kernels.cpu.conv import offset_rows, outputs, per_channel
from octo_exp.kernels.cpu.loops import array, use_torch_threads
from octo_exp.kernels.finish import Finish, Limits, Masked, Pad
from octo_exp.kernels.int8 import (
    MAX_K,
    ConvGeometry,
    channels_last_rows,
    check_int8,
    dense_flat,
    empty_channels_last,
    has_row_scales,
)
from octo_exp.workload import Epilogue


class Cpu(Backend):
    """As `Backend` says; what has no compiled form runs in plain torch."""

    @property
    def multiplier(self) -> str:
        """As `Products`, or the loops of this package."""
        return "int8 (vpmaddwd)" if conv.has_tiles() else super().multiplier

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """As `Products`."""
        return conv.multiply(a, b)

    def quantize(self, t: Tensor, scale: Tensor, zero_point: Tensor, limits: Limits) -> Tensor:
        """Of dense float32, with a scale a tensor, or one a row without more."""
        t, (q_min, q_max, low, high, seed) = t.detach(), limits
        source, by_row = dense_flat(t), scale.dim() > 0
        known = source is not None and t.dtype == torch.float32 and zero_point.dim() == 0
        if known and by_row:
            bare = low is None and high is None and seed is None
            known = bare and has_row_scales(t, scale) and not bool(zero_point != 0)
        if source is None or not known:
            return super().quantize(t, scale, zero_point, limits)
        out = torch.empty_like(t, dtype=torch.int8)
        target, ends = array(out.as_strided((t.numel(),), (1,))), (np.float32(q_min), np.float32(q_max))
        use_torch_threads()
        if by_row:
            rows = (t.shape[0], t.numel() // max(1, t.shape[0]))
            scales = per_channel(scale, t.shape[0])
            loops.quantize_rows(array(source).reshape(rows), target.reshape(rows), scales, *ends)
            return out
        bounds = [np.float32(d if v is None else v.item()) for v, d in ((low, -np.inf), (high, np.inf))]
        constants = (np.float32(scale.item()), np.float32(zero_point.item()), *ends, *bounds)
        loops.quantize(array(source), target, None if seed is None else np.uint64(seed), *constants)
        return out

    def activate(self, y: Tensor, steps: Epilogue) -> Masked:
        """As an epilogue of sums that are there."""
        rows = channels_last_rows(y.detach())
        out, mask = outputs(rows.shape, steps)
        channels = rows.shape[-1]
        scale, offset = np.ones(channels, np.float32), offset_rows(None, channels)
        conv.finish(rows.reshape(-1, channels), scale, offset, rows.shape, steps, channels_last_rows(out), mask)
        return out, mask

    def mask_gradient(self, g: Tensor, mask: Tensor, steps: Epilogue) -> Tensor:
        """By bits or by places."""
        if steps.pool > 1 and not steps.relu:
            return g
        rows_in = channels_last_rows(g)
        channels = rows_in.shape[-1]
        out = empty_channels_last(rows_in.shape)
        use_torch_threads()
        source, target = (array(t).reshape(-1, channels) for t in (rows_in, channels_last_rows(out)))
        rows = array(mask).reshape(-1, mask.shape[-1])
        if steps.pool == 1:
            loops.mask_bits(source, rows, target)
        else:
            loops.mask_index(source, rows, np.int8(steps.dead), target)
        return out

    def spread(self, t: Tensor, mask: Tensor, steps: Epilogue, size: tuple[int, int]) -> Tensor:
        """Of floats and of codes."""
        n, c = t.shape[:2]
        out = torch.empty((n, c, *size), dtype=t.dtype, memory_format=torch.channels_last)
        if size[0] % steps.pool or size[1] % steps.pool:
            out.zero_()
        use_torch_threads()
        arrays = [array(channels_last_rows(v)).reshape(-1, c) for v in (t, out)]
        loops.spread(arrays[0], array(mask).reshape(-1, c), arrays[1], size, steps.pool)
        return out

    def scale_rows(self, acc: Tensor, scale: Tensor, offset: Tensor | None, out: Tensor | None = None) -> Tensor:
        """scale may be [R] too; `out`, when given, is written and returned."""
        out, rows = torch.empty(acc.shape) if out is None else out, acc.shape[0]
        shifts = torch.zeros(rows) if offset is None else offset
        use_torch_threads()
        loops.scale_rows(array(acc), per_channel(scale, rows), per_channel(shifts, rows), array(out))
        return out

    def matmul_scaled(self, a: Tensor, b: Tensor, finish: Finish) -> Masked:
        """Of sums that fit int32."""
        if a.shape[1] > MAX_K:
            return super().matmul_scaled(a, b, finish)
        check_int8(a=a, b=b)
        shape = (a.shape[0], b.shape[1])
        out, mask = outputs(shape, finish.steps)
        constants = per_channel(finish.scale, b.shape[1]), offset_rows(finish.offset, b.shape[1])
        conv.finish(conv.multiply(a, b), *constants, shape, finish.steps, out, mask)
        return out, mask

    def matmul_grad_weight(self, g: Tensor, x: Tensor, finish: Finish) -> Tensor:
        """Some rows at a time: all accumulators would double the gradient's memory, and its page faults."""
        if not 0 < g.shape[0] <= MAX_K:
            return super().matmul_grad_weight(g, x, finish)
        check_int8(g=g, x=x)
        (scale, offset, _), o, i = finish, g.shape[1], x.shape[1]
        rows = max(1, conv.CHUNK_BYTES // max(1, 4 * i))
        out, buffer = torch.empty((o, i)), torch.empty((min(rows, o), i), dtype=torch.int32)
        for start in range(0, o, rows):
            part = slice(start, min(o, start + rows))
            acc = conv.multiply(g[:, part].t(), x, buffer[: part.stop - start])
            self.scale_rows(acc, scale, None if offset is None else offset[part], out[part])
        return out

    def conv2d_scaled(self, x: Tensor, w: Tensor, geometry: ConvGeometry, pad_value: Pad, finish: Finish) -> Masked:
        """Of one group."""
        if not geometry.can_fuse(x, w[0].numel()):
            return super().conv2d_scaled(x, w, geometry, pad_value, finish)
        check_int8(x=x, w=w)
        columns = conv.input_columns(channels_last_rows(x), (w.shape[2], w.shape[3]), geometry, pad_value, w.shape[0])
        return conv.multiply_and_finish(columns, channels_last_rows(w).flatten(1).t(), finish)

    def conv2d_grad_input_scaled(
        self, g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry, *, scale: Tensor
    ) -> Tensor:
        """Of one group."""
        if not geometry.can_fuse(g, w.numel() // w.shape[1]):
            return super().conv2d_grad_input_scaled(g, w, size, geometry, scale=scale)
        check_int8(g=g, w=w)
        columns = conv.gradient_columns(channels_last_rows(g), (w.shape[2], w.shape[3]), geometry, size, w.shape[1])
        # Rows in the order of the columns: (kernel row, kernel column, output channel).
        return conv.multiply_and_finish(columns, w.permute(2, 3, 0, 1).reshape(-1, w.shape[1]), Finish(scale))[0]

    def conv2d_grad_weight_scaled(
        self, x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, pad_value: Pad, finish: Finish
    ) -> Tensor:
        """Of one group; images are summed apart, so one image's sum must fit. Channels-last."""
        if not geometry.can_fuse(g, g.shape[2] * g.shape[3]):
            return super().conv2d_grad_weight_scaled(x, g, kernel, geometry, pad_value, finish)
        check_int8(x=x, g=g)
        columns, rows = conv.input_columns(channels_last_rows(x), kernel, geometry, pad_value, 0), channels_last_rows(g)
        acc = conv.sum_products(columns, lambda images: rows[images].reshape(-1, g.shape[1]), g.shape[1])
        return self.scale_rows(acc, *finish[:2]).reshape(g.shape[1], *kernel, x.shape[1]).permute(0, 3, 1, 2)

    def float_conv2d(
        self, x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry, steps: Epilogue | None
    ) -> Masked:
        """Of one group, as a convolution of codes."""
        if geometry.groups > 1:
            return super().float_conv2d(x, w, bias, geometry, steps)
        x, w = x.detach(), w.detach()
        columns = conv.input_columns(channels_last_rows(x), (w.shape[2], w.shape[3]), geometry, 0, w.shape[0])
        finish = Finish(torch.ones(()), bias, steps)
        return conv.multiply_and_finish(columns, channels_last_rows(w).flatten(1).t(), finish)

    def float_conv2d_grad_weight(
        self, x: Tensor, masked: Masked, steps: Epilogue | None, w_shape: torch.Size, geometry: ConvGeometry
    ) -> Tensor:
        """Of one group: a pooled gradient is spread some images at a time and never exists whole. Channels-last."""
        if geometry.groups > 1:
            return super().float_conv2d_grad_weight(x, masked, steps, w_shape, geometry)
        (g, mask), kernel = masked, (w_shape[2], w_shape[3])
        outputs = g.shape[1]
        columns = conv.input_columns(channels_last_rows(x), kernel, geometry, 0, outputs)

        def rows(images: slice) -> Tensor:
            part = g[images]
            if mask is not None and steps is not None and steps.pool > 1:
                part = self.spread(part, mask[images], steps, columns.size)
            return channels_last_rows(part).reshape(-1, outputs)

        return conv.sum_products(columns, rows, outputs).reshape(outputs, *kernel, x.shape[1]).permute(0, 3, 1, 2)
