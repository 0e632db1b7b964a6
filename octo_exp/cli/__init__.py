from octo_exp.cli.arguments import check_arguments
from octo_exp.cli.launch import FAILURE_FILE, guarded, launch, report_failures

__all__ = ["FAILURE_FILE", "check_arguments", "guarded", "launch", "report_failures"]
