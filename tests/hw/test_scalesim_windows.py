"""The last ifmap read where windows hang over the edge: as SCALE-Sim reports it, and by a walk over every read."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.hw import DATAFLOWS
from octo_exp.hw.scalesim import read_topology, reports, simulate
from tests.hw.helpers import GOLDEN
from tests.hw.scalesim_helpers import HEADER, machine, write


def stops(layers, profile):
    text = reports(simulate(layers, profile))["DETAILED_ACCESS_REPORT.csv"]
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    return [(row["LayerID"], row["SRAM IFMAP Stop Cycle"]) for row in rows]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize(("rows", "cols"), [(17, 11), (5, 3)])
def test_the_last_read_of_hanging_windows_is_that_of_scalesim(tmp_path, rows, cols, dataflow):
    with (GOLDEN / "hanging_stops.csv").open(newline="") as file:
        wanted = [
            (row["layer"], row["sram_ifmap_stop_cycle"])
            for row in csv.DictReader(file)
            if (row["rows"], row["cols"], row["dataflow"]) == (str(rows), str(cols), dataflow)
        ]
    profile = machine(tmp_path, ArrayHeight=rows, ArrayWidth=cols, Dataflow=dataflow)
    assert stops(read_topology(GOLDEN / "hanging.csv", "conv"), profile) == wanted


def reads(shape, strides, channels):
    """Which elements [m, k] lie on the ifmap, window by window."""
    (height, width), (filter_height, filter_width) = shape
    down, along = (-(-(e - f) // s) + 1 for e, f, s in zip(*shape, strides, strict=True))
    rows = np.arange(down)[:, None] * strides[0] + np.arange(filter_height) < height
    cols = np.arange(along)[:, None] * strides[1] + np.arange(filter_width) < width
    whole = rows[:, None, :, None, None] & cols[None, :, None, :, None]
    elements = (down * along, filter_height * filter_width * channels)
    return np.broadcast_to(whole, (down, along, filter_height, filter_width, channels)).reshape(elements)


def walked(valid, filters, rows, cols, dataflow):
    """Cycles until the last read, found by a walk over the reads of every fold."""
    (m, k), at, last = valid.shape, 0, 0
    down, across, through = {"os": (m, filters, k), "ws": (k, filters, m), "is": (k, m, filters)}[dataflow]
    lines = through + rows + cols - 2 + (0 if dataflow == "os" else rows)
    for col in range(0, across, cols):
        for row in range(0, down, rows):
            part = valid.T[row : row + rows, col : col + cols] if dataflow == "is" else valid
            part = valid[row : row + rows] if dataflow == "os" else part
            part = valid[:, row : row + rows] if dataflow == "ws" else part
            for one, other in np.argwhere(part).tolist():
                # Skewed by a line for every row of PEs; an operand that stays is filled from its last row on.
                cycle = one + other + (rows if dataflow == "ws" else 0) if dataflow != "is" else rows - 1 - one
                last = max(last, at + cycle + 1)
            at += lines
    return last


@given(
    ifmap=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    channels=st.integers(1, 3),
    filters=st.integers(1, 5),
    array=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    dataflow=st.sampled_from(DATAFLOWS),
)
def test_the_last_read_is_that_of_a_walk(tmp_path_factory, ifmap, window, strides, channels, filters, array, dataflow):
    folder = tmp_path_factory.getbasetemp()
    window = tuple(min(size, extent) for size, extent in zip(window, ifmap, strict=True))
    shape = ",".join(str(value) for value in (*ifmap, *window, channels, filters, *strides))
    layers = read_topology(write(folder / "walk.csv", f"{HEADER}a,{shape},\n"), "conv")
    profile = machine(folder / "walk", ArrayHeight=array[0], ArrayWidth=array[1], Dataflow=dataflow)
    wanted = walked(reads((ifmap, window), strides, channels), filters, *array, dataflow)
    assert stops(layers, profile) == [("0", str(float(wanted)))]


def test_a_depthwise_row_is_priced_once_and_reported_for_each_channel(tmp_path):
    path = write(tmp_path / "t.csv", f"{HEADER}DPw,9,9,3,3,200000,1,1,\nfc,1,1,1,1,9,4,1,\n")
    run = simulate(read_topology(path, "conv"), machine(tmp_path))
    assert len(run.gemms) == len(run.cost.cycles) == 2
    for text in reports(run).values():
        rows = text.splitlines()[1:]
        assert [row.split(",")[0] for row in rows] == [str(layer) for layer in range(200_001)]
        assert len({row.partition(",")[2] for row in rows[:-1]}) == 1
