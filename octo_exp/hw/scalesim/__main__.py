"""SCALE-Sim's command line over the closed form: `python -m octo_exp.hw.scalesim -c CFG -t TOPOLOGY -p OUTDIR`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from octo_exp.base.errors import UserError
from octo_exp.hw.scalesim.cfg import read_config
from octo_exp.hw.scalesim.reports import reports, simulate, table
from octo_exp.hw.scalesim.texts import write_all
from octo_exp.hw.scalesim.topology import KINDS, read_topology


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code, 0 or a `UserError`'s."""
    try:
        given = _parser().parse_args(arguments)
        if given.s == "Y":
            raise UserError("-s Y: traces are not written, only reports: leave it out, or run SCALE-Sim itself")
        config = read_config(given.c)
        run = simulate(read_topology(given.t, given.i), config.profile, config.interface_bandwidth)
        folder = Path(given.p) / config.run_name
        texts = reports(run)
        write_all({folder / name: text for name, text in texts.items()})
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(table(run))
    if given.l:
        sys.stdout.write(f"not read: {given.l}, for custom layouts are off\n")
    sys.stdout.write(f"written: {', '.join(texts)} in {folder}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m octo_exp.hw.scalesim", description="SCALE-Sim, in closed form.")
    parser.add_argument("-c", metavar="CONFIG", required=True, help="configuration, .cfg of version 2 or 3")
    parser.add_argument("-t", metavar="TOPOLOGY", required=True, help="layers, .csv")
    parser.add_argument("-i", choices=KINDS, default="conv", help="what a row of the topology is (default: conv)")
    parser.add_argument("-p", metavar="OUTDIR", required=True, help="reports go to OUTDIR/<run_name>/")
    parser.add_argument("-s", choices=("Y", "N"), default="N", help="save traces: Y is refused")
    parser.add_argument(
        "-l", metavar="LAYOUT", help="version 3's layout file; not read, for custom layouts are refused"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
