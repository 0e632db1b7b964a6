"""SCALE-Sim's topologies (.csv) as GEMMs, and the GEMMs of a workload as a topology.

What SCALE-Sim would drop or guess without a word (a row's end, a missing header, a second kind of row) is refused.
"""

from collections.abc import Iterator
from pathlib import Path

from octo_exp.errors import UserError
from octo_exp.hw.scalesim.files import read_text, write_all
from octo_exp.hw.workload import Gemm, Workload

KINDS = ("conv", "gemm")

_COLUMNS = {
    "conv": "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,",
    "gemm": "Layer, M, N, K,",
}
# One stride, or one for the height and one for the width.
_FIELDS = {"conv": (8, 9), "gemm": (4,)}


def read_topology(path: str | Path, kind: str) -> tuple[Gemm, ...]:
    """Layers of a topology as the GEMMs of a forward pass: role output, count 1, all operands 8 bits wide.

    `kind` is conv (rows of `Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter,
    Strides,`) or gemm (`Layer, M, N, K,`). A convolution of H x W x C by N filters of Fh x Fw at stride S has

        m = OH * OW, OH = ceil((H - Fh + S) / S), n = N, k = Fh * Fw * C, elements_a = touched rows * columns * C

    There is no padding, and a last window may hang over the edge. As SCALE-Sim does it, a convolution whose name
    contains "DP" is depthwise: one layer `<name>Channel_<i>` of one channel and N filters for each of its C channels.

    Raises:
        UserError: an unreadable or empty file, or a row that is not of this form.

    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of topology {kind!r}: choose one of {', '.join(KINDS)}")
    gemms: dict[str, Gemm] = {}
    for where, fields in _rows(Path(path), kind):
        name, numbers = fields[0], _numbers(where, fields)
        for gemm in _convolutions(where, name, numbers) if kind == "conv" else [_product(name, *numbers)]:
            if gemm.layer in gemms:
                raise UserError(f"{where}: layer {gemm.layer!r} is there twice: give each row a name of its own")
            gemms[gemm.layer] = gemm
    if not gemms:
        raise UserError(f"{path}: no layer: below a header, give rows of {_COLUMNS[kind]!r}")
    return tuple(gemms.values())


def write_topology(workload: Workload, path: str | Path) -> None:
    """Write the GEMMs of `workload` as a topology for `-i gemm`, one row `layer_role` each, in order.

    A GEMM that is done `count` > 1 times is as many rows, `layer_role_0` and so on. Widths are not written.

    Raises:
        UserError: no GEMM, a name that the format cannot hold or that is there twice, an unwritable path.

    """
    rows: dict[str, str] = {}
    for gemm in workload.gemms:
        name = f"{gemm.layer}_{gemm.role}"
        for row in [name] if gemm.count == 1 else [f"{name}_{copy}" for copy in range(gemm.count)]:
            if row in rows or row != row.strip() or any(mark in row for mark in ",\r\n"):
                raise UserError(f"{row!r} cannot be a row of a topology: give each layer a name of its own, no comma")
            rows[row] = f"{row},{gemm.m},{gemm.n},{gemm.k},\n"
    if not rows:
        raise UserError(f"no GEMM to write to {path}: trace a network with a convolution or a linear layer")
    write_all({Path(path): "Layer,M,N,K,\n" + "".join(rows.values())})


def _rows(path: Path, kind: str) -> Iterator[tuple[str, list[str]]]:
    """Position and fields of each row below the header."""
    lines = read_text(path).splitlines()
    if lines and lines[0].count(",") > 0 and lines[0].split(",")[1].strip().isdigit():
        raise UserError(f"{path}:1: the first line is skipped as a header: put {_COLUMNS[kind]!r} above it")
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        *fields, rest = (field.strip() for field in line.split(","))
        if rest and not rest.startswith("#"):
            raise UserError(f"{where}: SCALE-Sim drops what follows a row's last comma, here {rest!r}: add a comma")
        _check_fields(where, fields, kind)
        yield where, fields


def _check_fields(where: str, fields: list[str], kind: str) -> None:
    form = f"a row of kind {kind} is {_COLUMNS[kind]!r}"
    other = KINDS[1 - KINDS.index(kind)]
    if len(fields) in _FIELDS[other]:
        raise UserError(f"{where}: {len(fields)} fields are a row of kind {other}: choose -i {other}, or {form}")
    if fields and ":" in fields[-1]:
        raise UserError(f"{where}: sparsity is not modelled, got {fields[-1]!r}: leave its column out")
    if len(fields) not in _FIELDS[kind]:
        fault = "short" if len(fields) < _FIELDS[kind][0] else "long"
        raise UserError(f"{where}: the row is too {fault}, it has {len(fields)} fields: {form}")
    if not fields[0]:
        raise UserError(f"{where}: the layer has no name: {form}")


def _numbers(where: str, fields: list[str]) -> list[int]:
    for field in fields[1:]:
        if not (field.isascii() and field.isdigit() and int(field) > 0):
            raise UserError(f"{where}: layer {fields[0]!r}: {field!r} must be a whole number greater than zero")
    return [int(field) for field in fields[1:]]


def _convolutions(where: str, name: str, numbers: list[int]) -> Iterator[Gemm]:
    """The GEMM of a convolution, or one for each channel of a depthwise one."""
    height, width, filter_height, filter_width, channels, filters, *strides = numbers
    if filter_height > height or filter_width > width:
        raise UserError(
            f"{where}: layer {name!r}: a filter of {filter_height}x{filter_width} is larger than its ifmap of "
            f"{height}x{width}: there is no padding, so add it to the ifmap's height and width"
        )
    out_height, rows = _windows(height, filter_height, strides[0])
    out_width, cols = _windows(width, filter_width, strides[-1])
    depthwise = "DP" in name
    depth = 1 if depthwise else channels
    for channel in range(channels if depthwise else 1):
        layer = f"{name}Channel_{channel}" if depthwise else name
        extents = (out_height * out_width, filters, filter_height * filter_width * depth)
        yield _product(layer, *extents, elements_a=rows * cols * depth)


def _windows(extent: int, window: int, stride: int) -> tuple[int, int]:
    """Positions of a window along one axis, and how many of the axis' elements they touch."""
    positions = -(-(extent - window) // stride) + 1
    last = (positions - 1) * stride
    return positions, (positions - 1) * min(stride, window) + max(0, min(window, extent - last))


def _product(layer: str, m: int, n: int, k: int, elements_a: int | None = None) -> Gemm:
    return Gemm(
        layer=layer,
        role="output",
        m=m,
        n=n,
        k=k,
        count=1,
        bits_a=8,
        bits_b=8,
        bits_out=8,
        elements_a=elements_a,
    )
