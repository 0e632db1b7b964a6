"""The formats of `python -m octo_exp.export`, each a module that is imported where it is chosen.

A module has SUFFIX, that of its main file ("" for a folder), and

    export(graph: Graph, folder: Path, name: str) -> dict

which writes its files into `folder`, an empty one beside the destination, the main one as name + SUFFIX, verifies them
against `graph.net`, and returns what the manifest says of them. UserError where the format cannot hold the graph or the
files do not verify: then nothing is kept.
"""

import importlib
from types import ModuleType

FORMATS = {
    "mcu": "octo_exp.export.mcu",
    "onnx": "octo_exp.export.onnx.qdq",
    "c": "octo_exp.export.c99.c",
    "text": "octo_exp.export.text.text",
    "report": "octo_exp.export.report",
}


def module_of(name: str) -> ModuleType:
    """Return the module of a format of FORMATS."""
    return importlib.import_module(FORMATS[name])
