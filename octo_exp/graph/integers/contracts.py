"""What the forms of the integer graph, plain and compiled, need to know of its layers and of the whole."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from octo_exp.graph.operations import Step
from octo_exp.graph.spec import ModelSpec
from octo_exp.kernels.geometry import ConvGeometry


class ConvIntegers(Protocol):
    """A convolution in integers: see `IntegerConv`; `ready` is its compiled form, [N, H, W, C] -> [N, OH, OW, O]."""

    geometry: ConvGeometry
    weight: Tensor
    offset: Tensor
    value: Tensor
    shift: Tensor
    x_zero: int
    y_zero: int
    in_channels: int
    in_size: int
    out_size: int

    @property
    def ready(self) -> Callable[[np.ndarray], np.ndarray]: ...  # noqa: D102


class PoolIntegers(Protocol):
    """A pool of codes: see `IntegerPool`."""

    kind: str
    kernel: int
    stride: int
    padding: int


class NetIntegers(Protocol):
    """A whole graph in integers: see `IntegerNet`."""

    spec: ModelSpec
    logit_scale: float
    logit_zero: int
    image_constants: tuple[np.float32, ...]

    def steps(self) -> list[tuple[Step, Any]]: ...  # noqa: D102
