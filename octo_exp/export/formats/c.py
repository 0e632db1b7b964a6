"""format=c: C99 for int8, compiled and run."""

from octo_exp.export.c99.c import SUFFIX, verify, write

__all__ = ["SUFFIX", "verify", "write"]
