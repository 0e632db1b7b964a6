from octo_exp.base.failures import FILE as FAILURE_FILE
from octo_exp.config.arguments import check_arguments
from octo_exp.config.launch import at_stop, guarded, launch, report_failures

__all__ = ["FAILURE_FILE", "at_stop", "check_arguments", "guarded", "launch", "report_failures"]
