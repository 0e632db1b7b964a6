"""A small model, a convolution by brute force in int64, and where the released models and their goldens lie."""

import os
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octo_exp.graph.spec import BlockSpec, ConvSpec, Image, InputSpec, ModelSpec, PoolSpec, ResidualSpec
from octo_exp.graph.train.constants import ConvConstants
from octo_exp.kernels.ops import ConvGeometry

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


def conv_spec(
    rng: np.random.Generator,
    image: Image,
    *shape: int,
    stride: int = 1,
    groups: int = 1,
    padding: int | None = None,
    **options: Any,
) -> ConvSpec:
    """The image that it reads; shape: channels out, kernel. Some outputs are clamped, most are not."""
    outputs, kernel = shape
    inputs, size, x_scale, x_zero = image
    padding = (kernel - 1) // 2 if padding is None else padding
    weight = rng.integers(-127, 128, (outputs, inputs // groups, kernel, kernel)).astype(np.int8)
    defaults = {
        "in_channels": inputs,
        "out_channels": outputs,
        "in_size": size,
        "out_size": (size + 2 * padding - kernel) // stride + 1,
        "kernel_size": (kernel, kernel),
        "stride": stride,
        "padding": (padding, padding),
        "groups": groups,
        "depthwise": groups > 1,
        "weight": weight,
        "bias": rng.integers(-3000, 3000, outputs).astype(np.int32),
        "x_scale": x_scale,
        "x_zero": x_zero,
        "y_scale": float(x_scale * 0.01 * 75 * np.sqrt(weight[0].size)),
        "y_zero": int(rng.integers(-9, 10)),
        "w_scales": rng.uniform(0.008, 0.012, outputs).astype(np.float32),
    }
    return ConvSpec(**defaults | options)


def chain_of(rng: np.random.Generator, image: Image, *shapes: dict[str, int]) -> tuple[ConvSpec, ...]:
    """Convolutions one after another; shape: channels out, kernel, and options by name."""
    convs = []
    for shape in shapes:
        options = dict(shape)
        convs.append(conv_spec(rng, image, options.pop("outputs"), options.pop("kernel"), **options))
        image = convs[-1].gives
    return tuple(convs)


def residual_spec(shortcut: Image) -> ResidualSpec:
    """The sum of what the shortcut gives and what a body gives."""
    quantization = {"x_scale": shortcut.scale, "x_zero": shortcut.zero, "y_scale": 1.3 * shortcut.scale, "y_zero": 2}
    return ResidualSpec(channels=shortcut.channels, size=shortcut.size, **quantization)


def pool_spec(image: Image, kind: str, kernel: int, stride: int, padding: int = 0) -> PoolSpec:
    size = (image.size + 2 * padding - kernel) // stride + 1
    options = {"kernel": kernel, "stride": stride, "padding": padding}
    return PoolSpec(kind=kind, channels=image.channels, in_size=image.size, out_size=size, **options)


def tiny_model(seed: int = 0) -> ModelSpec:
    """Published layout, 16 x 16 images, 5 classes: a block of two, one with an addition, one with strides."""
    rng = np.random.default_rng(seed)

    def block(image: Image, inner: int, outputs: int, kernel: int, stride: int) -> tuple[ConvSpec, ...]:
        depthwise = {"outputs": inner, "kernel": kernel, "stride": stride, "groups": inner}
        expand, project = {"outputs": inner, "kernel": 1}, {"outputs": outputs, "kernel": 1}
        return chain_of(rng, image, *([expand] if inner != image.channels else []), depthwise, project)

    first = conv_spec(rng, Image(3, 16, 0.05, 0), 8, 3, stride=2)
    blocks = [BlockSpec(body=block(first.gives, 8, 6, 3, 1), shortcut=(), residual=None)]
    image = blocks[0].body[-1].gives
    residual = residual_spec(image)
    blocks.append(BlockSpec(body=block(image, 16, 6, 5, 1), shortcut=(), residual=residual))
    image = image._replace(scale=residual.y_scale, zero=residual.y_zero)
    blocks.append(BlockSpec(body=block(image, 16, 10, 7, 2), shortcut=(), residual=None))
    image = blocks[-1].body[-1].gives
    return ModelSpec(
        input=InputSpec(scale=1.0, zero=0),
        layers=(first, *blocks, pool_spec(image, "average", 4, 4)),
        classifier=conv_spec(rng, image._replace(size=1), 5, 1),
    )


def tiny_resnet(seed: int = 0, scale: float = 0.02) -> ModelSpec:
    """Own layout, 14 x 14 images, 4 classes: overlapping max pool, both blocks of a ResNet, a linear layer on 2 x 2."""
    rng = np.random.default_rng(seed)
    first = conv_spec(rng, Image(3, 14, scale, 5), 6, 5, padding=2)
    pool = pool_spec(first.gives, "max", 3, 2, 1)
    image = first.gives._replace(size=pool.out_size)
    plain = residual_spec(image)
    same_shape = chain_of(rng, image, {"outputs": 6, "kernel": 3}, {"outputs": 6, "kernel": 3})
    blocks = [BlockSpec(body=same_shape, shortcut=(), residual=plain)]
    image = image._replace(scale=plain.y_scale, zero=plain.y_zero)
    body = chain_of(rng, image, {"outputs": 9, "kernel": 3, "stride": 2}, {"outputs": 9, "kernel": 3})
    shortcut = chain_of(rng, image, {"outputs": 9, "kernel": 1, "stride": 2})
    residual = residual_spec(shortcut[-1].gives)
    blocks.append(BlockSpec(body=body, shortcut=shortcut, residual=residual))
    image = Image(9, residual.size, residual.y_scale, residual.y_zero)
    average = pool_spec(image, "average", 2, 2)
    return ModelSpec(
        input=InputSpec(scale=scale, zero=5),
        layers=(first, pool, *blocks, average),
        classifier=conv_spec(rng, image._replace(size=average.out_size), 4, average.out_size, padding=0),
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
