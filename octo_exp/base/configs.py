"""Where the yaml files lie that travel with the package: beside it in a checkout, within it where it is installed."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def conf_folder() -> Path:
    """Return the folder of the project's own configs."""
    return _folder("conf")


def sweeps_folder() -> Path:
    """Return the folder of the project's own sweeps."""
    return _folder("sweeps")


def _folder(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
