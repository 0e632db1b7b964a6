"""format=mcu: the microcontroller format, read back and computed with."""

from octo_exp.export.mcu import SUFFIX, verify, write

__all__ = ["SUFFIX", "verify", "write"]
