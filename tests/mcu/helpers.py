"""A small model, a convolution by brute force in int64, and where the released models and their goldens lie."""

import os
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octo_exp.kernels.geometry import ConvGeometry
from octo_exp.mcu.constants import ConvConstants
from octo_exp.mcu.spec import BlockSpec, ConvSpec, ModelSpec, ResidualSpec

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/tiny_training"
MODES = ("float_order", "integer")
# Models with goldens of their activations and gradients.
SHIPPED = ("mbv2-w0.35", "mcunet-5fps")


def data_file(variable: str, default: str, name: str) -> Path:
    """A file of the models or the large goldens; skips where there is none."""
    path = Path(os.environ.get(variable) or ROOT.parent / default) / name
    if not path.is_file():
        pytest.skip(f"{variable} has no {name}: the models and goldens of tiny-training are not on this machine")
    return path


def model_file(name: str) -> Path:
    return data_file("OCTO_MCU_DIR", "shared/models/mcu", f"{name}.pkl")


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(data_file("OCTO_MCU_GOLDENS", "shared/goldens/tiny_training", f"{name}.npz")) as file:
        return dict(file)


def conv_spec(rng: np.random.Generator, *shape: int, stride: int = 1, groups: int = 1, **options: Any) -> ConvSpec:
    """shape: channels in, out, kernel, side of the image. Some outputs are clamped, most are not."""
    inputs, outputs, kernel, size = shape
    weight = rng.integers(-127, 128, (outputs, inputs // groups, kernel, kernel)).astype(np.int8)
    defaults = {
        "in_channels": inputs,
        "out_channels": outputs,
        "in_size": size,
        "out_size": (size - 1) // stride + 1,
        "kernel_size": (kernel, kernel),
        "stride": stride,
        "groups": groups,
        "depthwise": groups > 1,
        "weight": weight,
        "bias": rng.integers(-3000, 3000, outputs).astype(np.int32),
        "x_scale": 0.05,
        "x_zero": -3,
        "y_scale": float(0.05 * 0.01 * 75 * np.sqrt(weight[0].size)),
        "y_zero": 4,
        "w_scales": rng.uniform(0.008, 0.012, outputs).astype(np.float32),
    }
    return ConvSpec(**defaults | options)


def tiny_model(seed: int = 0) -> ModelSpec:
    """16 x 16 images, 5 classes: a block without pointwise1, one with an addition, one with strides."""
    rng = np.random.default_rng(seed)
    residual = ResidualSpec(channels=6, size=8, x_scale=0.05, x_zero=-3, y_scale=0.07, y_zero=2)

    def block(inner: int, outputs: int, kernel: int, stride: int, residual: ResidualSpec | None) -> BlockSpec:
        return BlockSpec(
            pointwise1=conv_spec(rng, 6, inner, 1, 8),
            depthwise=conv_spec(rng, inner, inner, kernel, 8, stride=stride, groups=inner),
            pointwise2=conv_spec(rng, inner, outputs, 1, (8 - 1) // stride + 1),
            residual=residual,
        )

    first = BlockSpec(
        pointwise1=None,
        depthwise=conv_spec(rng, 8, 8, 3, 8, groups=8),
        pointwise2=conv_spec(rng, 8, 6, 1, 8),
        residual=None,
    )
    return ModelSpec(
        first_conv=conv_spec(rng, 3, 8, 3, 16, stride=2),
        blocks=(first, block(16, 6, 5, 1, residual), block(16, 10, 7, 2, None)),
        classifier=conv_spec(rng, 10, 5, 1, 1),
    )


def same(a: Any, b: Any) -> bool:
    """Whether two specs or trees are equal to the type, arrays to the bit."""
    if type(a) is not type(b):
        return False
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


@dataclass(frozen=True, kw_only=True)
class Case:
    """A convolution's operands: x, w whole numbers, b, g in float32."""

    x: Tensor
    w: Tensor
    b: Tensor
    g: Tensor
    constants: ConvConstants


def conv_case(
    seed: int,
    *,
    n: int,
    channels: tuple[int, int],
    groups: int,
    kernel: int | tuple[int, int],
    stride: int,
    size: tuple[int, int],
) -> Case:
    """Scales and gradients are multiples of powers of two, so every float sum is exact: equality means equality."""
    rng = np.random.default_rng(seed)
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    geometry = ConvGeometry(stride=(stride,) * 2, padding=((kh - 1) // 2, (kw - 1) // 2), groups=groups)
    shape = (channels[1], channels[0] // groups, kh, kw)

    def integers(low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(rng.integers(low, high + 1, shape).astype(np.float32))

    out = geometry.output_size(*size, (kh, kw))
    scale = torch.from_numpy(2.0 ** rng.integers(-8, -5, channels[1])).float()
    return Case(
        x=integers(-128, 127, (n, channels[0], *size)),
        w=integers(-127, 127, shape),
        b=integers(-2000, 2000, shape[:1]),
        g=integers(-8, 8, (n, channels[1], *out)),
        constants=ConvConstants(
            geometry=geometry,
            in_channels=channels[0],
            scale=scale,
            x_zero=int(rng.integers(-128, 128)),
            y_zero=int(rng.integers(-128, 128)),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Output and gradients of a convolution."""

    y: np.ndarray
    x: np.ndarray
    w: np.ndarray
    b: np.ndarray


def brute_force(case: Case) -> Expected:
    """The rules as they are written, tap by tap, sums in int64 and float64."""
    c, geometry = case.constants, case.constants.geometry
    x, w, g = (t.numpy().astype(np.float64) for t in (case.x, case.w, case.g))
    s, (p, q), (kh, kw) = geometry.stride[0], geometry.padding, w.shape[2:]
    padded = np.pad(x - c.x_zero, ((0, 0), (0, 0), (p, p), (q, q)))
    (oh, ow), per_in, per_out = g.shape[2:], w.shape[1], w.shape[0] // geometry.groups
    dx, dw, acc = np.zeros_like(padded), np.zeros_like(w), np.zeros(g.shape, np.int64)

    def places(o: int) -> list[tuple[int, int, int, tuple[Any, ...]]]:
        first = o // per_out * per_in
        window = [
            (i, j, slice(i, i + oh * s - s + 1, s), slice(j, j + ow * s - s + 1, s))
            for i in range(kh)
            for j in range(kw)
        ]
        return [
            (m, i, j, (slice(None), first + m, rows, columns)) for m in range(per_in) for i, j, rows, columns in window
        ]

    for o in range(w.shape[0]):
        for m, i, j, at in places(o):
            acc[:, o] += (padded[at] * w[o, m, i, j]).astype(np.int64)
    e, b = c.scale.numpy()[:, None, None], case.b.numpy()[:, None, None]
    t = np.rint((acc.astype(np.float32) + b) * e) + np.float32(c.y_zero)
    h = g * ((t >= -128) & (t <= 127)) * e.astype(np.float64)
    for o in range(w.shape[0]):
        for m, i, j, at in places(o):
            dx[at] += h[:, o] * w[o, m, i, j]
            dw[o, m, i, j] = (padded[at] * h[:, o]).sum()
    inside = dx[:, :, p : p + x.shape[2], q : q + x.shape[3]]
    return Expected(y=np.clip(t, -128, 127), x=inside, w=dw, b=h.sum((0, 2, 3)))
