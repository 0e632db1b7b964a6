"""The network that `model=` names, anybody's."""

import inspect
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig

from octo_exp.errors import ConfigError

# What conf/model/own.yaml offers, and the data reads.
OFFERED = ("in_channels", "num_classes", "image_size")


def build_model(node: DictConfig) -> Any:
    """Return what the node of `model=` makes: an nn.Module, or the graph of a file.

    Of `OFFERED`, a class of somebody else's gets what its constructor takes by name. ConfigError for another argument
    that it does not take.
    """
    target = node._target_
    if str(target).startswith("octo_exp."):
        return instantiate(node, _convert_="all")
    parameters = inspect.signature(get_object(target) if isinstance(target, str) else target).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return instantiate(node, _convert_="all")
    kept = {key: value for key, value in node.items() if key not in OFFERED or key in parameters}
    unknown = [key for key in kept if key not in parameters and not str(key).startswith("_")]
    if unknown:
        takes = ", ".join(parameters) or "no arguments"
        raise ConfigError(f"model.{unknown[0]}: {target} takes {takes}; leave it out, or correct the name")
    return instantiate(kept, _convert_="all")
