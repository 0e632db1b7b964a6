"""`octo export RUN format=...`: writes a run's network for other programs, verified.

mcu     the microcontroller format, .pkl        onnx  ONNX with QDQ nodes, opset 17, .onnx
c       C99 for int8, .c and .h                 text  a folder of decimal numbers
report  size, MACs, cycles and memory, layer by layer, before and after, .csv

What was not trained as an int8 graph is quantised first, LAC and BatchNorm folded, as calibration.* says. Everything
goes to RUN/export/ unless out= says otherwise, with a manifest beside it. Files are called verified where something
else computed with them, and the manifest's evidence says what and on how many images; a report is computed. A file that
does not give the integers of the graph is not kept, and replaces nothing. Nothing is called of a package that the run's
config names, beside octo_exp's, torch's and lightning's own, without trust=[package]. A wrong call ends with code 2,
what cannot be exported with 1, what is interrupted with 130; each says so in one line.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from octo_exp.base.errors import UserError
from octo_exp.cli.words import Words
from octo_exp.exports.exported import export_run
from octo_exp.exports.formats import module_of
from octo_exp.exports.request import parse

_INTERRUPTED = 130


def show(path: Path, content: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Print what was written and what is known of it."""
    table = Table(title=f"{path.name}: {content['state']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    images = content["test_images"]
    same = round(content["same_class_as_run"] * images)
    # What a run of quant=ptq has trained is a float network.
    run = "float network" if content["graph"] == "ptq" else "run"
    table.add_row(f"test accuracy, {run}", f"{content['accuracy_of_run']:.4f}")
    table.add_row("test accuracy, integers", f"{content['accuracy']:.4f}")
    table.add_row(f"test images, class of the {run}'s", f"{same:,} of {images:,}")
    if (evidence := content["evidence"]) is not None:
        table.add_row(f"verified by {evidence['by']}", _evidence_text(evidence))
    for key in ("bytes", "parameters", "macs", *found):
        table.add_row(key.replace("_", " "), _text(content[key]))
    console = Console(markup=False)
    console.print(table)
    console.print(f"written: {path}", soft_wrap=True, highlight=False)


def _rows(form: ModuleType, path: Path) -> None:
    """Print a format's own table, where it has one."""
    if hasattr(form, "table"):
        console = Console(markup=False) if sys.stdout.isatty() else Console(width=120, markup=False)
        console.print(form.table(path))


def _evidence_text(evidence: dict[str, Any]) -> str:
    return f"{evidence['of']} of {evidence['equal']:,} of {evidence['images']:,} images"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(words: Words) -> int:
    """Export the run that is named; return the exit code."""
    return export([f"run={words.path}", *(f"{key}={value}" for key, value in words.values.items())])


def export(settings: Sequence[str]) -> int:
    """Export as key=value lines say, the run's folder as run=; return the exit code."""
    try:
        request = parse(settings)
        done = export_run(request)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        return _INTERRUPTED
    _rows(module_of(request.format), done.path)
    show(done.path, done.manifest, done.found)
    return 0
