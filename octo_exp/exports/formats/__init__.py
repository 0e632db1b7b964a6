"""The formats of `octo export`, each a file of this folder that is imported where it is chosen.

A file has SUFFIX, that of its main file ("" for a folder), and

    write(graph: Graph, folder: Path, name: str) -> dict         what the manifest says of the files
    verify(graph: Graph, folder: Path, name: str) -> Evidence    where the files can be computed with

`write` puts its files into `folder`, an empty one beside the destination, the main one as name + SUFFIX; `verify` reads
them from there and compares what they give with `graph.net`. UserError where the format cannot hold the graph or the
files do not verify: then nothing is kept. A file may also have `table(path)`, its own table for the terminal.
"""

import importlib
import pkgutil
from types import ModuleType

FORMATS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def module_of(name: str) -> ModuleType:
    """Return the module of a format of FORMATS."""
    return importlib.import_module(f"{__name__}.{name}")
