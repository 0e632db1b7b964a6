"""SCALE-Sim's topologies (.csv) as GEMMs, and the GEMMs of a workload as a topology.

What SCALE-Sim would drop or guess without a word (a row's end, a missing header, a second kind of row) is refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.hw.scalesim.texts import read_text, write_all
from octo_exp.hw.scalesim.windows import Axis, Convolution
from octo_exp.workload import Gemm, Workload

KINDS = ("conv", "gemm")

# What every row is: a forward pass in words of a byte.
_WIDTHS: dict[str, Any] = {"role": "output", "bits_a": 8, "bits_b": 8, "bits_out": 8}

_COLUMNS = {
    "conv": "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,",
    "gemm": "Layer, M, N, K,",
}
# More than 2^53 has.
_MOST_DIGITS = 16
# One stride, or one for the height and one for the width.
_FIELDS = {"conv": (8, 9), "gemm": (4,)}


def read_topology(path: str | Path, kind: str) -> tuple[Gemm, ...]:
    """Layers of a topology as the GEMMs of a forward pass: role output, all operands 8 bits wide.

    `kind` is conv (rows of `Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter,
    Strides,`) or gemm (`Layer, M, N, K,`). A convolution of H x W x C by N filters of Fh x Fw at stride S has

        m = OH * OW, OH = ceil((H - Fh + S) / S), n = N, k = Fh * Fw * C, elements_a = touched rows * columns * C

    There is no padding, and a last window may hang over the edge. As SCALE-Sim does it, a convolution whose name
    contains "DP" is depthwise: a layer of one channel and N filters for each of its C channels, one GEMM of count C.
    Names may repeat. A row of either kind may have version 3's column of sparsity, where it is dense (1:1).

    Raises:
        UserError: an unreadable or empty file, or a row that is not of this form.

    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of topology {kind!r}: choose one of {', '.join(KINDS)}")
    gemms: list[Gemm] = []
    for where, fields in _rows(Path(path), kind):
        name, numbers = fields[0], _numbers(where, fields)
        gemms.append(_convolution(where, name, numbers) if kind == "conv" else _product(name, *numbers))
    if not gemms:
        raise UserError(f"{path}: no layer: below a header, give rows of {_COLUMNS[kind]!r}")
    return tuple(gemms)


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
    """Position and fields of each row below the header, without a column of sparsity."""
    lines = read_text(path).splitlines()
    if lines and lines[0].count(",") > 0 and lines[0].split(",")[1].strip().isdigit():
        raise UserError(f"{path}:1: the first line is skipped as a header: put {_COLUMNS[kind]!r} above it")
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        *fields, rest = (field.strip() for field in line.split(","))
        _check_marks(where, line, fields, rest, kind)
        fields = _without_ratio(where, fields, kind)
        # Cells without a number at the end of a GEMM's row are not read by SCALE-Sim, of a convolution's they stop it.
        while kind == "gemm" and len(fields) > max(_FIELDS[kind]) and not fields[-1]:
            fields.pop()
        _check_fields(where, fields, kind)
        yield where, fields


def _without_ratio(where: str, fields: list[str], kind: str) -> list[str]:
    """The row without version 3's column of sparsity, which must be dense; that version knows one stride alone."""
    if not (fields and (ratio := re.fullmatch(r"(\d+)\s*:\s*(\d+)", fields[-1]))):
        return fields
    if ratio[1] != ratio[2]:
        raise UserError(
            f"{where}: sparsity is not modelled, got {fields[-1]!r}: write 1:1, which is dense and what SCALE-Sim "
            "takes it for while SparsitySupport is off, or leave its column out"
        )
    if len(fields) > min(_FIELDS[kind]) + 1:
        raise UserError(f"{where}: SCALE-Sim reads one stride beside a sparsity: leave one of the two out")
    return fields[:-1]


def _check_marks(where: str, line: str, fields: list[str], rest: str, kind: str) -> None:
    """Refuse a row that SCALE-Sim would stop at, or drop the end of, for its marks."""
    if not any(fields) and not rest:
        raise UserError(f"{where}: the row has no cell with a value, at which SCALE-Sim stops: delete it")
    for mark, name in (("\t", "tabs"), (";", "semicolons")):
        if len(fields) < min(_FIELDS[kind]) and line.strip().count(mark) >= min(_FIELDS[kind]) - 1:
            raise UserError(f"{where}: the cells are parted by {name}, SCALE-Sim parts them by commas: replace them")
    if rest and not rest.startswith("#"):
        raise UserError(f"{where}: SCALE-Sim drops what follows a row's last comma, here {rest!r}: add a comma")


def _check_fields(where: str, fields: list[str], kind: str) -> None:
    form = f"a row of kind {kind} is {_COLUMNS[kind]!r}"
    other = KINDS[1 - KINDS.index(kind)]
    if len(fields) in _FIELDS[other]:
        raise UserError(f"{where}: {len(fields)} fields are a row of kind {other}: choose -i {other}, or {form}")
    if len(fields) > min(_FIELDS[kind]) and not fields[-1]:
        raise UserError(
            f"{where}: the row's last cell is empty, at which SCALE-Sim stops: delete one of the last commas"
        )
    if len(fields) not in _FIELDS[kind]:
        fault = "short" if len(fields) < _FIELDS[kind][0] else "long"
        raise UserError(f"{where}: the row is too {fault}, it has {len(fields)} fields: {form}")
    if not fields[0]:
        raise UserError(f"{where}: the layer has no name: {form}")


def _numbers(where: str, fields: list[str]) -> list[int]:
    for field in fields[1:]:
        if not (field.isascii() and field.isdigit() and field.strip("0")):
            raise UserError(f"{where}: layer {fields[0]!r}: {field!r} must be a whole number greater than zero")
        if len(field.lstrip("0")) > _MOST_DIGITS:
            raise UserError(f"{where}: layer {fields[0]!r}: a number of {len(field)} digits is no size of a layer")
    return [int(field) for field in fields[1:]]


def _convolution(where: str, name: str, numbers: list[int]) -> Convolution:
    """The GEMM of a convolution; of a depthwise one that of each channel, as often as there are channels."""
    height, width, filter_height, filter_width, channels, filters, *strides = numbers
    if filter_height > height or filter_width > width:
        raise UserError(
            f"{where}: layer {name!r}: a filter of {filter_height}x{filter_width} is larger than its ifmap of "
            f"{height}x{width}: there is no padding, so add it to the ifmap's height and width"
        )
    down, along = Axis.of(height, filter_height, strides[0]), Axis.of(width, filter_width, strides[-1])
    depth, count = (1, channels) if "DP" in name else (channels, 1)
    return Convolution(
        layer=name,
        m=down.positions * along.positions,
        n=filters,
        k=filter_height * filter_width * depth,
        count=count,
        elements_a=down.touched * along.touched * depth,
        down=down,
        along=along,
        channels=depth,
        **_WIDTHS,
    )


def _product(name: str, m: int, n: int, k: int) -> Gemm:
    return Gemm(layer=name, m=m, n=n, k=k, count=1, **_WIDTHS)
