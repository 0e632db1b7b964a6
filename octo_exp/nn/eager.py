"""Where compiled loops begin: torch.compile breaks its graph there, and what records a graph is refused."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from octo_exp.base.errors import UserError

P, R = ParamSpec("P"), TypeVar("R")


def recorded() -> UserError:
    """Return the refusal of what records a graph."""
    return UserError(
        "a quantised net cannot be recorded by torch.jit.trace or torch.export; write it by "
        "octo export, or use torch.compile, which breaks its graph at quantised layers"
    )


def eager(forward: Callable[P, R]) -> Callable[P, R]:
    """Keep a forward pass out of graphs: it calls loops that no tracer sees, whose numbers would become constants."""

    @functools.wraps(forward)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            raise recorded()
        return forward(*args, **kwargs)

    kept: Callable[P, R] = torch.compiler.disable(run)
    return kept
