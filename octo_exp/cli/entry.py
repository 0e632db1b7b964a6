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

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.cli.verbs import VERBS, usage_of
from octo_exp.cli.words import Words, read, unknown

_USAGE = "octo VERB [PATH] key=value ...   one verb's own words: octo VERB --help"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code: the verb's, 2 for a verb that there is not."""
    _open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        sys.stdout.write(f"{_USAGE}\n\n" + "".join(f"  {v:{width}}  {verb.does}\n" for v, verb in VERBS.items()))
        return 0
    if words[0] == "--version":
        from octo_exp import __version__

        sys.stdout.write(f"octo-exp {__version__}\n")
        return 0
    name, *rest = words
    try:
        if name not in VERBS:
            raise ConfigError(unknown("verb", name, VERBS))
        return _run(name, rest)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def _run(name: str, rest: Sequence[str]) -> int:
    """Read the words of a verb, then import it; return its exit code."""
    verb = VERBS[name]
    # What messages and help call the program.
    sys.argv = [f"octo {name}", *rest]
    asks = bool({"-h", "--help"} & set(rest))
    # A verb that answers by itself takes the question as it stands.
    given = Words(path=None, values={}, rest=rest) if asks else read(name, rest)
    # What a module makes when it is imported is not thrown away.
    gc.disable()
    module = importlib.import_module(verb.module)
    gc.enable()
    if asks and not verb.tells:
        _tell(name, module.__doc__ or "")
        return 0
    code: int = module.main(given)
    return code


def _tell(name: str, doc: str) -> None:
    """Print how a verb is called, and what its module says below its first line."""
    _, _, more = doc.partition("\n\n")
    sys.stdout.write(f"{usage_of(name)}\n\n{VERBS[name].does}" + (f"\n\n{more.strip()}" if more else "") + "\n")


def _open_streams() -> None:
    """Let what is written to a closed stream go nowhere: Python has None for it, and its number is the next file's."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
