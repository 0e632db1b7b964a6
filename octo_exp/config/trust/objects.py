"""The object behind a dotted name, and the module that it truly comes from."""

import importlib
import os
import sys
from collections.abc import Iterable
from types import MethodType, ModuleType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf


def within(name: str, packages: Iterable[str]) -> bool:
    """Whether a dotted name is one of these packages or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def is_python_own(name: str) -> bool:
    """Whether a dotted name lies in Python's own library."""
    return name.partition(".")[0] in sys.stdlib_module_names


def find(path: str) -> Any:
    """Return what a dotted name leads to, as Hydra finds it: attributes before submodules.

    Importing runs a module: the caller has made sure that the package is trusted.

    Raises:
        ImportError: nothing of that name, or one with a private (__x__) part, which no config needs.

    """
    parts = path.split(".")
    if any(not part or part.startswith("__") for part in parts):
        raise ImportError("no name that a config may give")
    try:
        found: Any = importlib.import_module(parts[0])
        for depth, part in enumerate(parts[1:], 2):
            if not hasattr(found, part) and isinstance(found, ModuleType):
                found = importlib.import_module(".".join(parts[:depth]))
            else:
                found = getattr(found, part)
    except Exception as error:
        raise ImportError(str(error)) from error
    return found


def look_here() -> None:
    """Let modules of the folder where the command was typed be found, after all that are installed."""
    here = os.getcwd()
    cfg: Any = HydraConfig.instance().cfg
    if cfg is not None:
        # Not the folder that hydra.job.chdir has changed to.
        here = OmegaConf.select(cfg, "hydra.runtime.cwd", default=here)
    if here not in sys.path:
        sys.path.append(here)


def home(found: Any) -> str | None:
    """Return the module that defines a class or function; None where that module does not hold what says so."""
    name = getattr(found, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None:
        return None
    holder: Any = module
    for part in str(getattr(found, "__qualname__", "")).split("."):
        holder = getattr(holder, part, None)
    # A bound method is made anew at each look; what a function makes has another qualified name.
    same = holder is found or (isinstance(found, MethodType) and holder == found)
    return name if same or any(value is found for value in list(vars(module).values())) else None


def title(found: Any) -> str:
    """Return how an object is called where it was defined: posix.system."""
    name = getattr(found, "__qualname__", None) or type(found).__qualname__
    return f"{getattr(found, '__module__', None) or '?'}.{name}"
