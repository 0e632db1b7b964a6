"""The command `octo VERB [PATH] key=value ...`: finds the verb; nothing else is imported until it is known."""

from octo_exp.base import signals

# The modules of a verb take a while to import.
signals.end_at_once()

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from octo_exp.cli.words import unknown

# verb -> (the module whose `main` takes the rest of the words, what it does).
VERBS = {
    "train": ("octo_exp.cli.train", "train, test and account for one network: key=value ..."),
    "sweep": ("octo_exp.cli.sweep", "train every combination of values: [FILE.yaml] key=a,b ..."),
    "resume": ("octo_exp.cli.resume", "go on with a run that was broken off: RUN [key=value ...]"),
    "eval": ("octo_exp.cli.evaluate", "test a trained network again: RUN [key=value ...]"),
    "predict": ("octo_exp.cli.predict", "class and probability of images: IMAGES run=RUN [out=FILE.csv]"),
    "export": ("octo_exp.cli.export", "write a run's network, verified: RUN format=onnx|c|text|mcu|report ..."),
    "summary": ("octo_exp.runs.sweep.summary", "print the table of a sweep: FOLDER"),
    "dse": ("octo_exp.cli.dse", "search machines for a training step: key=value ..."),
    "bench": ("octo_exp.cli.bench", "measure: NAME [key=value ...]"),
    "scalesim": ("octo_exp.hw.scalesim.__main__", "SCALE-Sim's reports of a topology and a config"),
    "fetch": ("octo_exp.cli.fetch", "place the released microcontroller graphs"),
    "graph": ("octo_exp.cli.graph", "logits of an int8 graph file for a file of images"),
}
_USAGE = "octo VERB [PATH] key=value ...   one verb's own words: octo VERB --help"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code: the verb's, 2 for a verb that there is not."""
    _open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        sys.stdout.write(f"{_USAGE}\n\n" + "".join(f"  {v:{width}}  {what}\n" for v, (_, what) in VERBS.items()))
        return 0
    if words[0] == "--version":
        from octo_exp import __version__

        sys.stdout.write(f"octo-exp {__version__}\n")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        sys.stderr.write(f"error: {unknown('verb', verb, VERBS)}\n")
        return 2
    # What messages and help call the program.
    sys.argv = [f"octo {verb}", *rest]
    # What a module makes when it is imported is not thrown away.
    gc.disable()
    module = importlib.import_module(VERBS[verb][0])
    gc.enable()
    code: int = module.main(rest)
    return code


def _open_streams() -> None:
    """Let what is written to a closed stream go nowhere: Python has None for it, and its number is the next file's."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
