"""Forms as tests make them: by name, with the shipped values but for what a test changes."""

from typing import Any

from octo_exp.quant.clipping import ClipForm, Gaussian, Learned, Ratio
from octo_exp.quant.compensation import Affine, Compensation, Exact, ZeroPoint

CLIPS: dict[str, tuple[type, dict[str, Any]]] = {
    "ratio": (Ratio, {"coefficient": 0.95}),
    "gaussian": (Gaussian, {"z": 2.576}),
    "learned": (Learned, {"rho_init": 1.0, "learning_rate": 0.01}),
}
COMPENSATIONS: dict[str, tuple[type, dict[str, Any]]] = {
    "zero_point": (ZeroPoint, {"granularity": "channel", "theta_init": 0.0, "learning_rate": 1e-3}),
    "affine": (Affine, {"granularity": "channel", "init_std": 1e-3, "decay": 0.1, "learning_rate": 1e-3}),
    "exact": (Exact, {}),
}


def clipping(form: str = "ratio", **changes: Any) -> ClipForm:
    """A clip form; of the changes those that it has."""
    kind, values = CLIPS[form]
    return kind(**{key: changes.get(key, value) for key, value in values.items()})


def compensation(form: str = "zero_point", **changes: Any) -> Compensation:
    """A form of LAC."""
    kind, values = COMPENSATIONS[form]
    return kind(**(values | changes))
