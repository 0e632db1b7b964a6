"""What a config may name: every object is looked at before any of them is called."""

from octo_exp.config.trust.check import check_targets
from octo_exp.config.trust.checkpoint_fault import checkpoint_fault
from octo_exp.config.trust.command_line import packages_of, packages_said

__all__ = ["check_targets", "checkpoint_fault", "packages_of", "packages_said"]
