"""From a trained network to an int8 graph, in one call."""

from collections.abc import Iterable
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.facade.shipped import near, shipped
from octo_exp.graph.calibrate import quantize_network
from octo_exp.graph.spec import ModelSpec
from octo_exp.nn.fold import folded
from octo_exp.nn.layers import QuantLayer


def calibrate(
    model: nn.Module, images: Iterable[Tensor], *, fresh: nn.Module | None = None, **changes: Any
) -> ModelSpec:
    """Quantise a trained network to an int8 graph: `octo_exp.IntegerNet(graph)` computes it in integers alone.

    Args:
        model: [N, C, S, S] -> [N, classes], in float, or quantised for training.
        images: calibration batches [B, C, S, S] float32, normalised as in training; read once.
        fresh: of a quantised model the float one as it was made, which takes its weights with LAC folded in.
        changes: of `calibration` in conf/quant/ptq.yaml: activations, percentile, symmetric, weights_per_channel.

    Raises:
        UserError: an operation that an int8 graph does not have; images that do not fit; an unknown setting.

    """
    settings = OmegaConf.to_container(shipped("+quant=ptq").quant.calibration)
    assert isinstance(settings, dict)
    # How many images there are is the caller's.
    settings.pop("images")
    for name in changes:
        if name not in settings:
            known = ", ".join(map(str, settings))
            raise ConfigError(f"unknown setting {name!r} of calibrate: {near(name, map(str, settings))}it has {known}")
    if any(isinstance(module, QuantLayer) for module in model.modules()):
        if fresh is None:
            raise UserError("the model is quantised for training: give fresh=<the float model as it was made>")
        model = folded(model, fresh)
    return quantize_network(model, images, **{str(key): value for key, value in (settings | changes).items()})
