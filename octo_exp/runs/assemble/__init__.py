"""From a config to objects: the quantised net in its LightningModule, the loggers, the trainer."""

from octo_exp.runs.assemble.composed import choice, replaced, resolved
from octo_exp.runs.assemble.construct import construct, fitted
from octo_exp.runs.assemble.module import Built, build_module
from octo_exp.runs.assemble.nets import quantize_net, speed_guard
from octo_exp.runs.assemble.refused import check_settings
from octo_exp.runs.assemble.trainer import build_trainer

__all__ = [
    "Built",
    "build_module",
    "build_trainer",
    "check_settings",
    "choice",
    "construct",
    "fitted",
    "quantize_net",
    "replaced",
    "resolved",
    "speed_guard",
]
