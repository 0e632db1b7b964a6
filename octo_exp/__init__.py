"""octo-exp: experiments with real INT8 training.

    import octo_exp

    net = octo_exp.quantize(net, "octo", bits=4)            # anybody's nn.Module: int8 in all three GEMMs
    optimizer = torch.optim.SGD(octo_exp.parameter_groups(net, lr=0.1))

Importing the package imports nothing heavy: each name is looked up where it lives when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octo_exp.exports.exported import Exported as Exported
    from octo_exp.facade.exporting import export as export
    from octo_exp.facade.int8_graphs import calibrate as calibrate
    from octo_exp.facade.pricing import price as price
    from octo_exp.facade.pricing import trace as trace
    from octo_exp.facade.training import parameter_groups as parameter_groups
    from octo_exp.facade.training import quantize as quantize
    from octo_exp.facade.training import scheme as scheme
    from octo_exp.graph.files.reader import read_model as read_graph
    from octo_exp.graph.files.writer import write_model as write_graph
    from octo_exp.graph.integers import IntegerNet as IntegerNet
    from octo_exp.nn.convert import compensation_penalty as compensation_penalty
    from octo_exp.quant.scheme import Scheme as Scheme

__version__ = "0.2.0"

# Name -> where it lives, and what it is called there.
_HOMES = {
    "Exported": ("octo_exp.exports.exported", "Exported"),
    "IntegerNet": ("octo_exp.graph.integers", "IntegerNet"),
    "Scheme": ("octo_exp.quant.scheme", "Scheme"),
    "calibrate": ("octo_exp.facade.int8_graphs", "calibrate"),
    "compensation_penalty": ("octo_exp.nn.convert", "compensation_penalty"),
    "export": ("octo_exp.facade.exporting", "export"),
    "parameter_groups": ("octo_exp.facade.training", "parameter_groups"),
    "price": ("octo_exp.facade.pricing", "price"),
    "quantize": ("octo_exp.facade.training", "quantize"),
    "read_graph": ("octo_exp.graph.files.reader", "read_model"),
    "scheme": ("octo_exp.facade.training", "scheme"),
    "trace": ("octo_exp.facade.pricing", "trace"),
    "write_graph": ("octo_exp.graph.files.writer", "write_model"),
}
__all__ = [
    "Exported",
    "IntegerNet",
    "Scheme",
    "calibrate",
    "compensation_penalty",
    "export",
    "parameter_groups",
    "price",
    "quantize",
    "read_graph",
    "scheme",
    "trace",
    "write_graph",
]


def __getattr__(name: str) -> Any:
    if name == "lightning":
        return importlib.import_module("octo_exp.lightning")
    if name not in _HOMES:
        raise AttributeError(f"module 'octo_exp' has no attribute {name!r}; it has {', '.join(__all__)}")
    home, there = _HOMES[name]
    found = getattr(importlib.import_module(home), there)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
