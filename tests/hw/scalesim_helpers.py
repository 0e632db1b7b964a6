"""Configurations, topologies and GEMMs for the tests of SCALE-Sim's files."""

from octo_exp.hw.scalesim import read_config
from octo_exp.workload import Gemm, Workload

ARCHITECTURE = {
    "ArrayHeight": 8,
    "ArrayWidth": 5,
    "IfmapSramSzkB": 64,
    "FilterSramSzkB": 64,
    "OfmapSramSzkB": 64,
    "Bandwidth": 10,
    "Dataflow": "os",
}
HEADER = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"


def config_text(run_name="run", mode="CALC", extra="", **change):
    keys = "".join(f"{key}: {value}\n" for key, value in (ARCHITECTURE | change).items() if value is not None)
    offsets = "IfmapOffset: 0\nFilterOffset: 10000000\nOfmapOffset: 20000000\n"
    sections = f"[architecture_presets]\n{keys}{offsets}\n{extra}\n[run_presets]\nInterfaceBandwidth: {mode}\n"
    return f"[general]\nrun_name = {run_name}\n\n{sections}"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def machine(tmp_path, **change):
    return read_config(write(tmp_path / "machine.cfg", config_text(**change))).profile


def step(*gemms):
    return Workload(gemms=gemms, batch_size=4, grad_input_form="col2im")


def gemm(**change):
    good = {"layer": "conv", "role": "output", "m": 63, "n": 16, "k": 65, "count": 1, "bits_a": 8, "bits_b": 8}
    return Gemm(**(good | change))
