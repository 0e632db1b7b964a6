"""Models of any layers in any order."""

import numpy as np

from octo_exp.graph.spec import BlockSpec, Image, InputSpec, Layer, ModelSpec
from tests.graph.helpers import chain_of, conv_spec, pool_spec, residual_spec

KINDS = ("conv", "max", "average", "line", "block", "identity")


def random_layer(rng: np.random.Generator, kind: str, image: Image) -> tuple[Layer, Image]:
    """A layer of a kind on an image, and the image that it gives."""
    if kind in ("max", "average"):
        pool = pool_spec(image, kind, int(rng.integers(1, 4)), 1)
        return pool, image._replace(size=pool.out_size)
    shapes = [{"outputs": int(rng.integers(1, 6)), "kernel": int(rng.choice([1, 3]))} for _ in range(3)]
    shapes = shapes[: rng.integers(1, 4)]
    if kind == "identity":
        shapes[-1]["outputs"] = image.channels
    body = chain_of(rng, image, *shapes)
    if kind == "conv":
        return body[0], body[0].gives
    if kind == "line":
        return BlockSpec(body=body, shortcut=(), residual=None), body[-1].gives
    shortcut = chain_of(rng, image, {"outputs": shapes[-1]["outputs"], "kernel": 1}) if kind == "block" else ()
    add = residual_spec(shortcut[-1].gives if shortcut else image)
    given = Image(add.channels, add.size, add.y_scale, add.y_zero)
    return BlockSpec(body=body, shortcut=shortcut, residual=add), given


def random_model(seed: int) -> ModelSpec:
    """One convolution, four layers of any kind, a classifier of 4 classes."""
    rng = np.random.default_rng(seed)
    image = Image(int(rng.integers(1, 5)), int(rng.integers(9, 14)), float(rng.uniform(0.01, 0.1)), 0)
    image = image._replace(zero=int(rng.integers(-128, 128)))
    start, layers = InputSpec(scale=image.scale, zero=image.zero), []
    for kind in ["conv", *rng.choice(KINDS, 4)]:
        layer, image = random_layer(rng, str(kind), image)
        layers.append(layer)
    return ModelSpec(input=start, layers=tuple(layers), classifier=conv_spec(rng, image, 4, image.size, padding=0))
