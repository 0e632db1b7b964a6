"""Which packages the user trusts: `trust=[pkg]`, said on the command line."""

from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig

from octo_exp.base.errors import ConfigError
from octo_exp.config.trust.objects import is_python_own
from octo_exp.config.trust.places import PACKAGES


def packages_of(trust: Any) -> tuple[str, ...]:
    """`trust=`, a list of packages or one of them -> the packages beside our own; ConfigError for what is none."""
    names = [trust] if isinstance(trust, str) else list(trust or ())
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"trust: {name!r} is no package; write trust=[my_package]")
        if is_python_own(name):
            raise ConfigError(
                f"trust: {name} is of Python's own library, none of which a config may name; leave it out"
            )
    return tuple(name for name in names if name not in PACKAGES)


def trusted_by(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the packages of a config's own `trust`; ConfigError where Hydra read it from a yaml.

    A yaml may come with the very names that it would vouch for. Outside of Hydra, who made the config says it.
    """
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else ["trust="]
    keys = [str(line).lstrip("+").partition("=")[0] for line in given]
    return packages_said(cfg.get("trust", None), said="trust" in keys)


def packages_said(trust: Any, *, said: bool) -> tuple[str, ...]:
    """As `packages_of`; ConfigError for packages that the command line has not said."""
    packages = packages_of(trust)
    if packages and not said:
        listed = ",".join(packages)
        raise ConfigError(f"trust stands in a yaml, where it does not count; if you trust it, add trust=[{listed}]")
    return packages
