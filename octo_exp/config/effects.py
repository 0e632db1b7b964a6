"""Refuses a setting that another one leaves without effect, where the command line gives it. Standard library only."""

from collections.abc import Collection, Mapping
from typing import Any

from octo_exp.base.errors import ConfigError

# A parameter of one form among several -> the forms that read it. The yaml has a value for each of them.
_READ_BY: dict[str, dict[str, tuple[str, ...]]] = {
    "quant.clip": {
        "coefficient": ("ratio",),
        "z": ("gaussian",),
        "rho_init": ("learned",),
        "learning_rate": ("learned",),
    },
    "quant.compensation": {
        "theta_init": ("zero_point",),
        "init_std": ("affine",),
        "decay": ("affine",),
        "learning_rate": ("zero_point", "affine"),
    },
}
_FORMS = {"exact", *(form for place in _READ_BY.values() for forms in place.values() for form in forms)}


def check_effects(given: Collection[str], config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a parameter of a form that is not the one in use.

    Args:
        given: dotted keys of the command line.
        config: the job's config, resolved.

    """
    for place, read_by in _READ_BY.items():
        group, _, name = place.partition(".")
        node = (config.get(group) or {}).get(name)
        form = node.get("form") if isinstance(node, Mapping) else None
        # An unknown form is for the constructor to judge.
        if form not in _FORMS:
            continue
        for parameter, forms in read_by.items():
            if f"{place}.{parameter}" in given and form not in forms:
                others = [other for other, theirs in read_by.items() if form in theirs]
                remedy = f"set {place}.{' or .'.join(others)}" if others else "leave it out"
                raise ConfigError(
                    f"{place}.{parameter} has no effect with {place}.form={form}: it is of form={' and '.join(forms)}; "
                    f"{remedy}, or choose that form"
                )
