"""The network that `model=` names, anybody's."""

import inspect
import traceback
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig

from octo_exp.base.errors import ConfigError
from octo_exp.base.failures import message_of, user_error

# What conf/model/own.yaml offers, and the data reads.
OFFERED = ("in_channels", "num_classes", "image_size")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def build_model(node: DictConfig) -> Any:
    """Return what the node of `model=` makes: an nn.Module, or the graph of a file.

    Of `OFFERED`, a class of somebody else's gets what its constructor takes by name. ConfigError for another argument
    that it does not take or that is missing, and for what it raises, with the place in its own files.
    """
    target = node._target_
    if is_ours(node):
        return _made(node, target)
    parameters = inspect.signature(get_object(target) if isinstance(target, str) else target).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return _made(node, target)
    kept = {str(key): value for key, value in node.items() if key not in OFFERED or key in parameters}
    unknown = [key for key in kept if key not in parameters and not key.startswith("_")]
    if unknown:
        takes = ", ".join(parameters) or "no arguments"
        raise ConfigError(f"model.{unknown[0]}: {target} takes {takes}; leave it out, or correct the name")
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind in _NAMED and name not in kept
    ]
    if missing and not kept.get("_args_"):
        raise ConfigError(f"model.{missing[0]} must be given: {target} asks for it; write +model.{missing[0]}=<value>")
    return _made(kept, target)


def is_ours(node: DictConfig) -> bool:
    """Whether `model=` names a network of this package."""
    return str(node._target_).startswith("octo_exp.")


def _made(node: Any, target: Any) -> Any:
    try:
        return instantiate(node, _convert_="all")
    except Exception as error:
        mistake = user_error(error)
        if mistake is not None:
            raise mistake from error
        # Hydra wraps what a constructor raises.
        cause = error.__cause__ or error
        raise ConfigError(
            f"model: {target} raises {message_of(cause)}{_place(cause, str(target))}; correct the setting, or the class"
        ) from error


def _place(error: BaseException, target: str) -> str:
    """Return the line of the class's own package that an error came out of, else nothing."""
    package = target.partition(".")[0]
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == package
    ]
    return f" ({frames[-1][0]}:{frames[-1][1]})" if frames else ""
