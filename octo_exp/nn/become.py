"""A layer becomes one of another class where it stands, as torch's own parametrisations do it.

Parameters, buffers, hooks, flags and every reference to the layer stay: from a second parent, a list, a closure.
"""

from typing import Any, TypeVar

from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


def become(layer: nn.Module, kind: type[Kind]) -> Kind:
    """Make `layer` a `kind`, in place, and return it; of a subclass's layer everything but the computation stays."""
    layer.__class__ = _class(kind, type(layer))
    return layer  # type: ignore[return-value]


def _class(kind: type[nn.Module], own: type[nn.Module]) -> type[nn.Module]:
    """`kind` itself for torch's own classes, else a class that is both: the `kind` computes."""
    if own in kind.__mro__:
        return kind
    # Without a module-level name: pickle finds its way by the two classes.
    members = {"__module__": kind.__module__, "__reduce__": lambda self: (_empty, (kind, own), self.__dict__)}
    return type(f"{kind.__name__}Of{own.__name__}", (kind, own), members)


def _empty(kind: type[nn.Module], own: type[nn.Module]) -> Any:
    joined = _class(kind, own)
    return joined.__new__(joined)
