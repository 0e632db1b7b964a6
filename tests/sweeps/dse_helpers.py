"""A search of machines in this process or as a command."""

import csv
import os
import subprocess
import sys

from octo_exp.cli.dse import search as dse
from tests.configs import CONF, compose_copy

ROOT = CONF.parent
LENET = ("model=lenet5", "data.batch_size=1", "quant.skip=[]")
BASE = "systolic_32x32"
SMALL = "++space={rows:{from:1,to:16},cols:{from:1,to:16},dataflow:[os,ws,is]}"
FILES = ("points.csv", "pareto.csv", "pareto.png", "best.cfg", "gemms.csv")


def composed(folder, *overrides):
    cfg = compose_copy("dse", *LENET, *overrides)
    cfg.save_dir = str(folder)
    return cfg


def searched(folder, *overrides):
    folder.mkdir(exist_ok=True)
    return dse.search_machines(composed(folder, SMALL, *overrides))


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def command(folder, *arguments, **options):
    line = [sys.executable, "sweeps/dse.py", *arguments, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def ran(folder, *arguments):
    process = command(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
