"""int8 operands and their exact products: shapes, layouts, and GEMMs through `torch._int_mm`.

`_int_mm` (oneDNN on CPU, cuBLASLt on CUDA, padded where CUDA asks for it) has no public promise, so it is probed once
per device with the extreme codes. Where it is missing, not exact (an x86 CPU with AVX-512 and without VNNI: its int8
instructions saturate at 16 bits), or a plain loop (an x86 CPU with neither: ten times slower than float32) another
takes its place, and is named: compiled loops where a processor has them (`cpu/tiles`), else a float32 product of sums
so short that it is exact. All give the same integers.
"""

import functools
import logging
import platform
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

# The longest sum that fits int32 whatever the codes: K * 128 * 128 <= 2^31 - 1.
MAX_K = (2**31 - 1) // (128 * 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvGeometry:
    """Stride, zero padding, dilation (height, width) and groups of a 2-D convolution."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def options(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        """Return stride, padding, dilation and groups, as torch's functions take them."""
        return self.stride, self.padding, self.dilation, self.groups

    def output_size(self, height: int, width: int, kernel: tuple[int, int]) -> tuple[int, int]:
        """Spatial size of the output: floor((H + 2p - d(k-1) - 1) / s) + 1 per dimension."""
        sizes = []
        for extent, k, s, p, d in zip((height, width), kernel, self.stride, self.padding, self.dilation, strict=True):
            sizes.append((extent + 2 * p - d * (k - 1) - 1) // s + 1)
        if min(sizes) < 1:
            raise ValueError(f"input {height}x{width} is smaller than kernel {kernel} with {self}")
        return sizes[0], sizes[1]

    def can_fuse(self, operand: Tensor, sum_length: int) -> bool:
        """Whether compiled convolutions take it: one group, not empty, sums that fit int32."""
        return self.groups == 1 and operand.numel() > 0 and sum_length <= MAX_K


def check_int8(**tensors: Tensor) -> None:
    """Raise TypeError where one of the named tensors is not int8."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int8:
            raise TypeError(f"{name} must be int8, got {tensor.dtype}")


def check_conv2d(x: Tensor, w: Tensor, geometry: ConvGeometry) -> None:
    """Raise where x [N, C, H, W] and w [O, C/G, KH, KW] are not int8, or their channels differ."""
    check_int8(x=x, w=w)
    if x.shape[1] != w.shape[1] * geometry.groups:
        raise ValueError(f"x has {x.shape[1]} channels, w wants {w.shape[1]} x {geometry.groups} groups")


def dense_flat(t: Tensor) -> Tensor | None:
    """Return the elements as they lie in memory, one row, if t is dense (contiguous or channels-last), else None."""
    channels_last = t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
    return t.as_strided((t.numel(),), (1,), t.storage_offset()) if t.is_contiguous() or channels_last else None


def has_row_scales(t: Tensor, scale: Tensor) -> bool:
    """Whether scale is [R, 1, ...] for a t [R, ...]: one for each row of memory, if t is dense."""
    return scale.dim() == t.dim() and scale.shape[0] == t.shape[0] and scale.numel() == scale.shape[0]


def channels_last_rows(t: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C], contiguous (a view where t is channels-last); others as they are, contiguous."""
    return (t.permute(0, 2, 3, 1) if t.dim() == 4 else t).contiguous()


def empty_channels_last(shape: tuple[int, ...]) -> Tensor:
    """Uninitialised float32; [N, C, H, W] channels-last for `shape` [N, H, W, C]: no view, which nobody may change."""
    if len(shape) != 4:
        return torch.empty(shape)
    n, h, w, c = shape
    return torch.empty((n, c, h, w), memory_format=torch.channels_last)


@functools.cache
def int_mm_is_exact(device_type: str) -> bool:
    """Whether `torch._int_mm` exists here and multiplies the extreme codes exactly."""
    if not hasattr(torch, "_int_mm"):
        log.warning("torch._int_mm is missing: another exact product takes its place")
        return False
    pattern = torch.tensor([-128, -127, 127, -1], dtype=torch.int8, device=device_type)
    a, b = pattern.repeat(32, 64), pattern.flip(0).repeat(64, 32)
    same = torch.full_like(a, -128)
    for left, right in ((a, b.t().repeat(2, 1)), (same, same.t())):
        if not torch.equal(_int_mm(left, right).long(), (left.double() @ right.double()).long()):
            log.warning(
                "torch._int_mm is not exact on this %s (no VNNI?): another exact product takes its place",
                device_type,
            )
            return False
    return True


@functools.cache
def int_mm_pays(device_type: str) -> bool:
    """Whether `torch._int_mm` is exact here, and by an instruction for int8 rather than by a plain loop."""
    if not int_mm_is_exact(device_type):
        return False
    return device_type != "cpu" or _has_int8_instruction(torch.cpu)


def _has_int8_instruction(cpu: Any) -> bool:
    """Whether an x86 processor multiplies int8; True where torch does not say, and on others, whose torch decides."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    if hasattr(cpu, "get_capabilities"):
        known = cpu.get_capabilities()
        return any(known.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    # Older torch has one of these.
    asked = [getattr(cpu, name) for name in ("_is_vnni_supported", "_is_avx512_vnni_supported") if hasattr(cpu, name)]
    return any(supported() for supported in asked) if asked else True


def _plain(t: Tensor) -> Tensor:
    """Return t with a fresh matrix's strides where a dimension is 1: oneDNN misreads any other, and returns garbage.

    `contiguous` alone keeps them, for the stride of such a dimension means nothing to it.
    """
    return t.contiguous().as_strided(t.shape, (t.shape[1], 1)) if 1 in t.shape else t


def _int_mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    if a.device.type != "cuda":
        a, b = _plain(a), _plain(b)
        return torch._int_mm(a, b) if out is None else torch._int_mm(a, b, out=out)
    # cuBLASLt wants M > 16 and K, N multiples of 8; zeros change no sum.
    m, k, n = a.shape[0], a.shape[1], b.shape[1]
    pad_m, pad_k, pad_n = max(0, 17 - m), -k % 8, -n % 8
    a, b = F.pad(a, (0, pad_k, 0, pad_m)), F.pad(b, (0, pad_n, 0, pad_k))
    return torch._int_mm(a, b)[:m, :n]


def float_matmul(a: Tensor, b: Tensor) -> Tensor:
    """As `matmul`: 1,024 products of at most 2^14 stay within 2^24, the integers that float32 holds, in any order."""
    out = torch.zeros((a.shape[0], b.shape[1]), dtype=torch.int32, device=a.device)
    for start in range(0, a.shape[1], 1024):
        part = slice(start, start + 1024)
        out += (a[:, part].float() @ b[part].float()).to(torch.int32)
    return out


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None, *, integers: bool = False) -> Tensor:
    """[M, K] int8, [K, N] int8 -> [M, N] int32. The caller keeps K small enough for int32 sums.

    `integers`: by integer arithmetic wherever that is exact, be it a plain loop; else by what is fastest. `out`, a
    contiguous int32 [M, N] on a CPU, may be used for the result and must not be read otherwise.
    """
    usable = int_mm_is_exact if integers else int_mm_pays
    if not usable(a.device.type):
        return float_matmul(a, b)
    return _int_mm(a, b, out)


class Products:
    """Exact products of int8 codes on one kind of device, as torch multiplies them."""

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type

    @property
    def multiplier(self) -> str:
        """Name what multiplies int8 codes here; every way gives the same integers."""
        if int_mm_pays(self.device_type):
            return "int8 (torch._int_mm)"
        reason = "no int8 instruction" if int_mm_is_exact(self.device_type) else "torch._int_mm is not exact"
        return f"float32, exact ({reason} on this {self.device_type})"

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a [M, K] int8, b [K, N] int8, K <= MAX_K -> [M, N] int32 or int64."""
        return matmul(a, b)

    def int8_matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a [M, K] int8, b [K, N] int8 -> [M, N], exact: int32, or int64 where K > MAX_K.

        K is split there and the partial sums are added in int64: an int8 matmul that wraps does so silently.
        """
        check_int8(a=a, b=b)
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"shapes must be [M, K] and [K, N], got {tuple(a.shape)} and {tuple(b.shape)}")
        k = a.shape[1]
        if k <= MAX_K:
            return self.matmul(a, b).to(torch.int32)
        total = torch.zeros((), dtype=torch.int64, device=a.device)
        for i in range(0, k, MAX_K):
            total = total + self.matmul(a[:, i : i + MAX_K], b[i : i + MAX_K]).to(torch.int64)
        return total
