"""format=text: a folder of decimal numbers, read and computed with by numpy alone."""

from octo_exp.export.text.text import SUFFIX, verify, write

__all__ = ["SUFFIX", "verify", "write"]
