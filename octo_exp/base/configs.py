"""Where the yaml files of `conf/` lie: beside the package in a checkout, within it where it was installed."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def conf_folder() -> Path:
    """Return the folder of the project's own configs."""
    inside = _PACKAGE / "conf"
    return inside if inside.is_dir() else _PACKAGE.parent / "conf"
