"""conf/ and sweeps/ lie at the top of the tree, and within the package where it is installed."""

from pathlib import Path

from setuptools import find_packages, setup

_TOP = Path(__file__).parent
# Each folder of yaml files is named: setuptools takes it for a package.
_FOLDERS = [
    path.parent.relative_to(_TOP).as_posix() for top in ("conf", "sweeps") for path in _TOP.glob(f"{top}/**/*.yaml")
]
_YAML = {f"octo_exp.{folder.replace('/', '.')}": folder for folder in sorted(set(_FOLDERS))}

setup(
    packages=[*find_packages(include=["octo_exp*"]), *_YAML],
    package_dir=_YAML,
    package_data={"octo_exp": ["py.typed"], **{package: ["*.yaml"] for package in _YAML}},
)
