from octo_exp.runs.tracking.logger import WandbRun, default_mode

__all__ = ["WandbRun", "default_mode"]
