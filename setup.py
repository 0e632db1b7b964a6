"""conf/ and sweeps/ lie at the top of the tree, and within the package where it is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["octo_exp*"]), "octo_exp.conf", "octo_exp.sweeps"],
    package_dir={"octo_exp.conf": "conf", "octo_exp.sweeps": "sweeps"},
    package_data={"octo_exp": ["py.typed"], "octo_exp.conf": ["*.yaml", "*/*.yaml"], "octo_exp.sweeps": ["*.yaml"]},
)
