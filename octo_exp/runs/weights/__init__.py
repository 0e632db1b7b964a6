"""Weights that a net starts from: a run's checkpoint, or anybody's file of weights; and their hash."""

from octo_exp.runs.folder import checkpoint_path
from octo_exp.runs.weights.given import Given, given
from octo_exp.runs.weights.of_run import (
    check_no_compensation,
    check_same_network,
    is_compensated,
    net_state,
    speed_guard_of,
    start_from,
    state_sha256,
    weights_sha256,
)

__all__ = [
    "Given",
    "check_no_compensation",
    "check_same_network",
    "checkpoint_path",
    "given",
    "is_compensated",
    "net_state",
    "speed_guard_of",
    "start_from",
    "state_sha256",
    "weights_sha256",
]
