"""`octo scalesim TOPOLOGY.csv config=FILE.cfg out=FOLDER`: SCALE-Sim's reports, in closed form.

TOPOLOGY.csv and FILE.cfg are SCALE-Sim's own, of version 2 or 3; rows=gemm where a row of the topology is M, N, K. The
reports go to FOLDER/<run_name>/. `python -m octo_exp.hw.scalesim` takes SCALE-Sim's own flags.
"""

from octo_exp.cli.words import Words
from octo_exp.hw.scalesim.__main__ import main as simulate


def main(words: Words) -> int:
    """Write the reports; return the exit code."""
    given = words.values
    kind = given.get("rows", "conv")
    return simulate(["-t", words.given_path, "-c", given["config"], "-p", given["out"], "-i", kind])
