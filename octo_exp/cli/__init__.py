from octo_exp.cli.arguments import check_arguments
from octo_exp.cli.launch import FAILURE_FILE, at_stop, guarded, launch, report_failures

__all__ = ["FAILURE_FILE", "at_stop", "check_arguments", "guarded", "launch", "report_failures"]
