"""The CPU path between the GEMMs: tensors in, compiled loops of `cpu_loops`, tensors out; same bits as plain torch."""

import numba
import numpy as np
import torch
from torch import Tensor

from octo_exp.kernels.cpu import loops, noise
from octo_exp.kernels.plain.elementwise import dense_flat, has_row_scales
from octo_exp.workload import Epilogue


def array(t: Tensor) -> np.ndarray:
    """Return the tensor as an array on the same memory."""
    return t.detach().numpy()


def use_torch_threads() -> None:
    """Let the next compiled loop run on as many threads as torch uses."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    # When numba starts its threads it sets the number of the OpenMP that it shares with torch.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def per_channel(v: Tensor, channels: int) -> np.ndarray:
    """Scalar or [C] -> [C] float32, contiguous."""
    return array(v.float().reshape(-1).expand(channels).contiguous())


def offsets(offset: Tensor | None, channels: int) -> np.ndarray:
    """None, [C] or [P, C] -> [P, C] float32, contiguous."""
    if offset is None:
        return np.zeros((1, channels), np.float32)
    return array(offset.float().reshape(-1, channels).contiguous())


def quantize(
    t: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    q_min: int,
    q_max: int,
    low: Tensor | None = None,
    high: Tensor | None = None,
    seed: int | None = None,
) -> Tensor | None:
    """See `elementwise.quantize`; None where this path does not know the layout."""
    t = t.detach()
    source = dense_flat(t)
    if source is None or t.dtype != torch.float32 or zero_point.dim() > 0:
        return None
    out = torch.empty_like(t, dtype=torch.int8)
    use_torch_threads()
    limits = (np.float32(q_min), np.float32(q_max))
    target = array(out.as_strided((t.numel(),), (1,)))
    if scale.dim() > 0:
        if not has_row_scales(t, scale) or any(v is not None for v in (low, high, seed)) or bool(zero_point != 0):
            return None
        rows = (t.shape[0], t.numel() // max(1, t.shape[0]))
        loops.quantize_rows(array(source).reshape(rows), target.reshape(rows), per_channel(scale, t.shape[0]), *limits)
        return out
    bounds = [np.float32(d if v is None else v.item()) for v, d in ((low, -np.inf), (high, np.inf))]
    constants = (np.float32(scale.item()), np.float32(zero_point.item()), *limits, *bounds)
    if seed is None:
        loops.quantize(array(source), target, *constants)
    else:
        noise.quantize_noisy(array(source), target, np.uint64(seed), *constants)
    return out


def activate(y: Tensor, epilogue: Epilogue) -> tuple[Tensor, Tensor | None]:
    """See `fused.activate`."""
    rows = channels_last_rows(y.detach())
    out, mask = outputs(rows.shape, epilogue)
    channels = rows.shape[-1]
    scale = np.ones(channels, np.float32)
    finish(rows.reshape(-1, channels), scale, None, rows.shape, epilogue, channels_last_rows(out), mask)
    return out, mask


def outputs(shape: torch.Size, epilogue: Epilogue | None) -> tuple[Tensor, Tensor | None]:
    """Uninitialised (output, mask) of a GEMM whose output is `shape` [..., C]; the output is NCHW where 4-D."""
    pool = 1 if epilogue is None else epilogue.pool
    if len(shape) == 4:
        shape = torch.Size((shape[0], shape[1] // pool, shape[2] // pool, shape[3]))
    out = empty_channels_last(shape)
    if epilogue is None or not (epilogue.relu or pool > 1):
        return out, None
    if pool > 1:
        return out, torch.empty(shape, dtype=torch.int8)
    return out, torch.empty((*shape[:-1], (shape[-1] + 7) // 8), dtype=torch.uint8)


def empty_channels_last(shape: torch.Size) -> Tensor:
    """Uninitialised float32; [N, C, H, W] channels-last for `shape` [N, H, W, C]: no view, which nobody may change."""
    if len(shape) != 4:
        return torch.empty(shape)
    n, h, w, c = shape
    return torch.empty((n, c, h, w), memory_format=torch.channels_last)


def channels_last_rows(t: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C], contiguous (a view where t is channels-last); others as they are, contiguous."""
    return (t.permute(0, 2, 3, 1) if t.dim() == 4 else t).contiguous()


def finish(
    acc: Tensor,
    scale: np.ndarray,
    offset: Tensor | None,
    shape: torch.Size | tuple[int, ...],
    epilogue: Epilogue | None,
    out: Tensor,
    mask: Tensor | None,
) -> None:
    """acc [M, C], M the rows of `shape` [..., C] -> out and mask, written in place: acc*scale + offset, activated."""
    channels = shape[-1]
    use_torch_threads()
    rows = (array(acc), scale, offsets(offset, channels), array(out).reshape(-1, channels))
    if mask is None:
        loops.finish(*rows)
    elif epilogue.pool == 1:
        loops.finish_relu(*rows, array(mask).reshape(-1, mask.shape[-1]))
    else:
        index = array(mask).reshape(-1, channels)
        loops.finish_pool(*rows, index, (shape[1], shape[2]), epilogue.pool, epilogue.relu)


def mask_gradient(g: Tensor, mask: Tensor, epilogue: Epilogue) -> Tensor:
    """See `fused.mask_gradient`."""
    if epilogue.pool > 1 and not epilogue.relu:
        return g
    rows_in = channels_last_rows(g)
    channels = rows_in.shape[-1]
    out = empty_channels_last(rows_in.shape)
    use_torch_threads()
    source, target = (array(t).reshape(-1, channels) for t in (rows_in, channels_last_rows(out)))
    rows = array(mask).reshape(-1, mask.shape[-1])
    if epilogue.pool == 1:
        loops.mask_bits(source, rows, target)
    else:
        loops.mask_index(source, rows, np.int8(epilogue.dead), target)
    return out


def spread(t: Tensor, mask: Tensor, epilogue: Epilogue, size: tuple[int, int]) -> Tensor:
    """See `fused.spread`."""
    n, c = t.shape[:2]
    out = torch.empty((n, c, *size), dtype=t.dtype, memory_format=torch.channels_last)
    if size[0] % epilogue.pool or size[1] % epilogue.pool:
        out.zero_()
    use_torch_threads()
    arrays = [array(channels_last_rows(v)).reshape(-1, c) for v in (t, out)]
    loops.spread(arrays[0], array(mask).reshape(-1, c), arrays[1], size, epilogue.pool)
    return out


def scale_rows_into(acc: Tensor, scale: Tensor, offset: Tensor | None, out: Tensor) -> Tensor:
    """As `scale_rows`, into `out`, which is returned."""
    shifts = torch.zeros(acc.shape[0]) if offset is None else offset
    use_torch_threads()
    rows = acc.shape[0]
    loops.scale_rows(array(acc), per_channel(scale, rows), per_channel(shifts, rows), array(out))
    return out


def scale_rows(acc: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """acc [R, K] int32 or int64, scale scalar or [R], offset [R] or None -> acc*scale + offset, a row each, float32."""
    return scale_rows_into(acc, scale, offset, torch.empty(acc.shape))
