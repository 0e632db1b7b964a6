"""format=report: computed from the graph; there is no file to compute with."""

from octo_exp.export.report import SUFFIX, table, write

__all__ = ["SUFFIX", "table", "write"]
