"""SCALE-Sim in and out: its configurations and topologies read and written, its reports from the closed form.

    python -m octo_exp.hw.scalesim -c machine.cfg -t network.csv [-i conv|gemm] -p OUTDIR

writes COMPUTE_REPORT.csv, BANDWIDTH_REPORT.csv and DETAILED_ACCESS_REPORT.csv to OUTDIR/<run_name>/ and shows a table
of layers. Traces are not written.
"""

from octo_exp.hw.scalesim.cfg import ScaleSimConfig, read_config, write_config
from octo_exp.hw.scalesim.reports import reports, simulate
from octo_exp.hw.scalesim.topology import read_topology, write_topology

__all__ = [
    "ScaleSimConfig",
    "read_config",
    "read_topology",
    "reports",
    "simulate",
    "write_config",
    "write_topology",
]
