"""The 49,152 SCALE-Sim results that a course project trained a network on; they have no licence and are not shipped."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from octo_exp.hw import gemm_cycles

LABELS = os.environ.get("OCTO_CYCLE_LABELS")


@pytest.mark.skipif(
    not LABELS,
    reason="set OCTO_CYCLE_LABELS to proxy/dataset.csv of github.com/hplp/ai-hardware-project-6501-group6",
)
def test_cycles_equal_every_label():
    with Path(str(LABELS)).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 49_152
    column = {name: np.array([int(row[name]) for row in rows]) for name in rows[0] if name}
    cycles = gemm_cycles(
        column["M"],
        column["N"],
        column["K"],
        rows=column["height"],
        cols=column["width"],
        # 0, 1, 2 are os, ws, is: the order of DATAFLOWS.
        dataflow=column["dataflow"],
        convention="scalesim",
    )
    np.testing.assert_array_equal(cycles, column["cycles"])
