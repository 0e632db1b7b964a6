"""octo-exp: experiments with real INT8 training.

    import octo_exp

    net = octo_exp.quantize(net, "octo", bits=4)            # anybody's nn.Module: int8 in all three GEMMs
    optimizer = torch.optim.SGD(octo_exp.parameter_groups(net, lr=0.1))

Importing the package imports nothing heavy: each name is looked up where it lives when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octo_exp.facade import parameter_groups as parameter_groups
    from octo_exp.facade import quantize as quantize
    from octo_exp.facade import scheme as scheme
    from octo_exp.nn.convert import compensation_penalty as compensation_penalty
    from octo_exp.quant.scheme import Scheme as Scheme

__version__ = "0.1.0"

_HOMES = {
    "Scheme": "octo_exp.quant.scheme",
    "compensation_penalty": "octo_exp.nn.convert",
    "parameter_groups": "octo_exp.facade",
    "quantize": "octo_exp.facade",
    "scheme": "octo_exp.facade",
}
__all__ = ["Scheme", "compensation_penalty", "parameter_groups", "quantize", "scheme"]


def __getattr__(name: str) -> Any:
    if name == "lightning":
        return importlib.import_module("octo_exp.lightning")
    if name not in _HOMES:
        raise AttributeError(f"module 'octo_exp' has no attribute {name!r}; it has {', '.join(__all__)}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
