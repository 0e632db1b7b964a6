"""The integer graph on a CPU: int8 GEMMs between compiled loops; the same codes as `plain`.

A depthwise convolution is a loop; any other is im2col and GEMM, some images at a time so that the sums stay in the
cache, for each of its groups; one of few rows is a loop of its own (`few_rows`). Between layers images are arrays
[N, H, W, C], and a layer's constants are made ready once: at batch 1 the calls cost as much as the work.
"""

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octo_exp.graph.integers.fixed import AddFactors
from octo_exp.graph.parts import ConvSpec
from octo_exp.kernels.cpu import few_rows, fixed_loops
from octo_exp.kernels.cpu import loops as kernel_loops
from octo_exp.kernels.cpu.conv import multiply
from octo_exp.kernels.cpu.loops import array

# Bytes of int32 sums that exist at a time.
CHUNK_BYTES = 2**19


class _Room(threading.local):
    """Memory for what lives within one layer: fresh pages would cost more than the loops that fill them."""

    def __init__(self) -> None:
        self.arrays: dict[Any, np.ndarray] = {}

    def of(self, dtype: type, rows: int, columns: int) -> np.ndarray:
        """Return an array [rows, columns], of any content."""
        size = rows * columns
        found = self.arrays.get(dtype)
        if found is None or found.size < size:
            found = self.arrays[dtype] = np.empty(size, dtype)
        return found[:size].reshape(rows, columns)


room = _Room()


def images_of(codes: Tensor) -> np.ndarray:
    """[N, C, H, W] -> [N, H, W, C], contiguous; a view where it lies so."""
    return np.ascontiguousarray(array(codes).transpose(0, 2, 3, 1))


def codes_of(images: np.ndarray) -> Tensor:
    """[N, H, W, C] -> [N, C, H, W], a view."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2))


class Conv:
    """A convolution made ready: [N, H, W, C] -> [N, OH, OW, O]; see `IntegerConv` for weight and constants."""

    def __init__(self, spec: ConvSpec, weight: Tensor, *constants: Tensor) -> None:
        g = spec.geometry
        self.geometry, self.kernel, self.outputs = g, spec.kernel_size, spec.out_channels
        self.x_zero, self.y_zero = spec.x_zero, spec.y_zero
        self.size, self.out_size = (spec.in_size, spec.in_size), (spec.out_size, spec.out_size)
        self.window = (self.kernel, g.stride, g.padding)
        self.steps = (*self.window, g.dilation, self.size, self.out_size, np.int8(spec.x_zero))
        self.constants = tuple(map(array, constants))
        # The image as it lies is the GEMM's rows.
        pointwise = self.kernel == (1, 1) and g.stride == (1, 1)
        self.is_matrix = g.padding == (0, 0) and (pointwise or self.kernel == self.size)
        self.is_depthwise = g.groups == spec.in_channels == self.outputs > 1 and g.stride[0] == g.stride[1]
        if self.is_depthwise:
            self.taps = np.ascontiguousarray(array(weight)[:, 0].transpose(1, 2, 0))
        else:
            self.weights = images_of(weight).reshape(g.groups, self.outputs // g.groups, -1)
            self.matrices = [torch.from_numpy(part.T) for part in self.weights]
            self.packed: list[np.ndarray | None] = [None] * g.groups

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the convolution's codes."""
        g = self.geometry
        out = np.empty((len(x), *self.out_size, self.outputs), np.int8)
        if self.is_depthwise:
            fixed_loops.depthwise(x, self.taps, *self.constants, self.x_zero, self.y_zero, g.stride[0], g.padding, out)
        elif g.groups == 1:
            self._gemm(x, 0, self.constants, out)
        else:
            self._groups(x, out)
        return out

    def _groups(self, x: np.ndarray, out: np.ndarray) -> None:
        inputs, outputs = x.shape[3] // self.geometry.groups, self.outputs // self.geometry.groups
        for k in range(self.geometry.groups):
            part = slice(k * outputs, k * outputs + outputs)
            made = np.empty((*out.shape[:3], outputs), np.int8)
            share = np.ascontiguousarray(x[..., k * inputs : k * inputs + inputs])
            self._gemm(share, k, tuple(v[part] for v in self.constants), made)
            out[..., part] = made

    def _gemm(self, x: np.ndarray, group: int, constants: tuple[np.ndarray, ...], out: np.ndarray) -> None:
        n, (outputs, k) = len(x), self.weights[group].shape
        positions = self.out_size[0] * self.out_size[1]
        count = n * positions
        little = count <= few_rows.MAX_ROWS or count * k * outputs <= few_rows.MAX_MACS
        if little and few_rows.is_available():
            own = room.of(np.int8, 1, count * k + few_rows.WORD)[0]
            few_rows.conv(x, self._packed(group), *self.window, self.x_zero, *constants, self.y_zero, own, out)
            return
        step = max(1, min(n, CHUNK_BYTES // (positions * 4 * outputs)))
        for start in range(0, n, step):
            rows = self._columns(x[start : start + step], positions, k)
            made = out[start : start + step].reshape(-1, outputs)
            acc = room.of(np.int32, len(rows), outputs)
            sums = multiply(torch.from_numpy(rows), self.matrices[group], torch.from_numpy(acc), integers=True)
            requantize = fixed_loops.requantize if made.size > fixed_loops.PARALLEL else fixed_loops.requantize_rows
            requantize(array(sums), *constants, self.y_zero, made)

    def _packed(self, group: int) -> np.ndarray:
        found = self.packed[group]
        if found is None:
            found = self.packed[group] = few_rows.packed(self.weights[group])
        return found

    def _columns(self, x: np.ndarray, positions: int, k: int) -> np.ndarray:
        """[N, H, W, C] -> [N*OH*OW, K], the border filled with x_zero."""
        if self.is_matrix:
            return x.reshape(-1, k)
        out = room.of(np.int8, len(x) * positions, k)
        kernel_loops.columns_of_input(x.reshape(len(x), -1), out, *self.steps)
        return out


def pooled(x: np.ndarray, kind: str, k: int, s: int, p: int) -> np.ndarray:
    """[N, H, W, C] -> [N, OH, OW, C]; see `IntegerPool`."""
    n, height, width, channels = x.shape
    out = np.empty((n, (height + 2 * p - k) // s + 1, (width + 2 * p - k) // s + 1, channels), np.int8)
    if kind == "max":
        fixed_loops.max_pool(x, k, s, p, out)
    else:
        fixed_loops.average_pool(x, k, s, out)
    return out


def added(x1: np.ndarray, x2: np.ndarray, factors: AddFactors, zeros: tuple[int, int, int]) -> np.ndarray:
    """Two images [N, H, W, C] -> their sum; see `IntegerAdd`."""
    out = np.empty(x1.shape, np.int8)
    n = len(out)
    fixed_loops.add(x1.reshape(n, -1), x2.reshape(n, -1), *factors, zeros, out.reshape(n, -1))
    return out
