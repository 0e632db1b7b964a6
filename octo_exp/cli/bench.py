"""`octo bench NAME ...`: one of the measurements of octo_exp.bench."""

import importlib
import sys
from collections.abc import Sequence

from octo_exp.cli.words import unknown

# Files of octo_exp/bench that measure; the others are what they share.
NAMES = ("cost_model", "deploy", "kernels", "graphs", "memory", "breakdown", "train_step", "twin")


def main(arguments: Sequence[str]) -> int:
    """Run the measurement that is named; return its exit code."""
    name, *rest = arguments or [""]
    if name in ("-h", "--help"):
        sys.stdout.write(f"octo bench NAME ...: {', '.join(NAMES)}\n")
        return 0
    if name not in NAMES:
        sys.stderr.write(f"error: {unknown('measurement', name, NAMES)}\n")
        return 2
    sys.argv = [f"octo bench {name}", *rest]
    code: int = importlib.import_module(f"octo_exp.bench.{name}").main(rest)
    return code
