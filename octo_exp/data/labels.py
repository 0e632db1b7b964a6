"""The label column of a table, as whoever wrote it typed it, to class numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from octo_exp.base.errors import UserError
from octo_exp.data.set_spec import Spec, row_name, shown

if TYPE_CHECKING:
    import pyarrow as pa

BOOLEAN_NAMES = ("False", "True")


def label_kind(kind: "pa.DataType") -> "pa.DataType":
    """The type of a single label: without a dictionary of values, and without lists around it."""
    import pyarrow.types as types

    if types.is_dictionary(kind) or _is_list(kind):
        return label_kind(kind.value_type)
    return kind


def is_text(kind: "pa.DataType") -> bool:
    """Whether labels of an arrow type are the names of classes."""
    import pyarrow.types as types

    kind = label_kind(kind)
    return bool(types.is_string(kind) or types.is_large_string(kind))


def is_boolean(kind: "pa.DataType") -> bool:
    """Whether labels of an arrow type are yes or no."""
    import pyarrow.types as types

    return bool(types.is_boolean(label_kind(kind)))


def label_values(column: "pa.ChunkedArray", spec: Spec, where: str) -> np.ndarray:
    """Labels as they are meant.

    Args:
        column: N integers, whole numbers stored as floats or decimals, booleans, texts, a dictionary of any of them, or
            lists of one of them each.
        spec: of the set, for messages.
        where: the table's name.

    Returns:
        [N] integers, or objects that are texts.

    Raises:
        UserError: a row without a label or with several, or labels of another type.

    """
    import pyarrow as pa
    import pyarrow.types as types

    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if values.null_count:
        row = values.is_null().index(True).as_py()
        raise UserError(f"{row_name(where, row)}: there is no label in column {spec.label_column}: give it one")
    if types.is_dictionary(values.type):
        return label_values(values.dictionary_decode(), spec, where)
    if _is_list(values.type):
        return label_values(_only_elements(values, spec, where), spec, where)
    if types.is_boolean(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False)).astype(np.int64)
    if is_text(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    if types.is_integer(values.type):
        return np.asarray(values.to_numpy())
    if types.is_floating(values.type) or types.is_decimal(values.type):
        return _whole_numbers(values.cast(pa.float64()).to_numpy(), spec, where)
    raise UserError(
        f"{where}: label column {spec.label_column} holds {values.type}: it must hold one class in every row, "
        f"a number or a name; set data.label_column= to another"
    )


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _only_elements(values: Any, spec: Spec, where: str) -> Any:
    """The elements of lists that hold one each."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != 1)
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"{row_name(where, row)}: column {spec.label_column} holds {int(lengths[row])} labels ({len(wrong)} such "
            f"rows): an image has one class here; set data.label_column= to another"
        )
    return values.flatten()


def _whole_numbers(values: np.ndarray, spec: Spec, where: str) -> np.ndarray:
    wrong = np.flatnonzero(~(np.abs(values) < 2**53) | (values != np.rint(values)))
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"{row_name(where, row)}: label {values[row]:g} is no whole number ({len(wrong)} such rows): "
            f"it must be a class; set data.label_column= to another"
        )
    return values.astype(np.int64)


def numbered(values: np.ndarray, names: Sequence[str], spec: Spec, where: str) -> np.ndarray:
    """Texts [N] to the numbers of the classes that they name; numbers as they are."""
    if values.dtype != object:
        return values
    number = {name: i for i, name in enumerate(names)}
    for row, name in enumerate(values):
        if name not in number:
            raise UserError(
                f"{row_name(where, row)}: the {spec.class_split} split has no class {shown(name)}: correct the label "
                f"or remove the row"
            )
    return np.array([number[name] for name in values], dtype=np.int64)
