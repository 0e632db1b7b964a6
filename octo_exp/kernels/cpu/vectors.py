"""Vectors of 16 numbers for compiled loops (numba): what a loop says of one number, said of sixteen.

    v = rint((floats(load(acc, i, n) - load(shift, j, n)) + load(bias, j, n)) * load(scale, j, n))
    store(codes, i, n, clamp(v, low, high))

A compiler finds vectors in simple loops only, and of the length that it likes; these are LLVM's own, which it splits
where a machine's are shorter. A vector is of float32 or of int32. `n`, at most 16, is how many of its lanes lie in an
array: the others are 0 when read and are not written. Arrays are flat and contiguous; their bounds are not checked.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_ELEMENTS = {types.int8: _I8, types.int32: _I32, types.float32: _F32}
# Code that makes an intrinsic's value: (context, builder, its arguments).
Maker = Callable[[Any, ir.IRBuilder, Any], ir.Value]


class VectorType(types.Type):
    """16 numbers of an element type."""

    def __init__(self, element: types.Type) -> None:
        self.element = element
        super().__init__(name=f"Vector({element})")


FLOATS, INTS = VectorType(types.float32), VectorType(types.int32)


def vector(element: ir.Type) -> ir.VectorType:
    """16 of LLVM's."""
    return ir.VectorType(element, LANES)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: VectorType) -> None:
        super().__init__(dmm, fe_type, vector(_ELEMENTS[fe_type.element]))


def code(result: types.Type, arguments: tuple[types.Type, ...], make: Maker) -> Any:
    """What an intrinsic returns: its signature, and its code."""
    return result(*arguments), lambda context, builder, signature, values: make(context, builder, values)


def spread_value(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A number sixteen times."""
    empty = ir.Constant(vector(value.type), ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(vector(_I32), [0] * LANES))


def call(builder: ir.IRBuilder, name: str, *operands: ir.Value) -> ir.Value:
    """A function of LLVM's, whose value is of the first operand's type."""
    kind = ir.FunctionType(operands[0].type, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}"), operands)


def place(context: Any, builder: ir.IRBuilder, array: types.Array, values: Any) -> ir.Value:
    """Pointer to the bytes of array[at]; values: the array and `at`."""
    data = context.make_array(array)(context, builder, values[0]).data
    return builder.bitcast(builder.gep(data, [values[1]]), _I8.as_pointer())


def _is_whole(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    return builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))


@intrinsic
def load(typingctx: Any, array: Any, at: Any, count: Any) -> Any:
    """array[at : at + count], int8 as int32."""
    element = _ELEMENTS[array.dtype]
    kind = vector(element)

    def make(context: Any, builder: ir.IRBuilder, values: Any) -> ir.Value:
        source, room = place(context, builder, array, values), cgutils.alloca_once(builder, kind)
        # A count that is known leaves one branch: a whole load costs no more than itself.
        with builder.if_else(_is_whole(builder, values[2])) as (then, otherwise):
            with then:
                builder.store(builder.load(builder.bitcast(source, kind.as_pointer()), align=1), room)
            with otherwise:
                builder.store(ir.Constant(kind, None), room)
                cgutils.raw_memcpy(builder, room, source, values[2], context.get_abi_sizeof(element))
        v = builder.load(room)
        return builder.sext(v, vector(_I32)) if element == _I8 else v

    return code(FLOATS if element == _F32 else INTS, (array, types.intp, types.intp), make)


@intrinsic
def store(typingctx: Any, array: Any, at: Any, count: Any, v: Any) -> Any:
    """array[at : at + count] = v; where the array is of int8, whole numbers within it."""
    element = _ELEMENTS[array.dtype]

    def make(context: Any, builder: ir.IRBuilder, values: Any) -> ir.Value:
        target, value = place(context, builder, array, values), values[3]
        if element == _I8:
            # By way of int32: no vector instruction makes bytes of floats.
            value = builder.trunc(builder.fptosi(value, vector(_I32)) if v == FLOATS else value, vector(_I8))
        room = cgutils.alloca_once(builder, value.type)
        with builder.if_else(_is_whole(builder, values[2])) as (then, otherwise):
            with then:
                builder.store(value, builder.bitcast(target, value.type.as_pointer()), align=1)
            with otherwise:
                builder.store(value, room)
                cgutils.raw_memcpy(builder, target, room, values[2], context.get_abi_sizeof(element))
        return context.get_dummy_value()

    return code(types.void, (array, types.intp, types.intp, v), make)


@intrinsic
def spread(typingctx: Any, value: Any) -> Any:
    """Return a number sixteen times: float32 or int32."""
    kind = FLOATS if value == types.float32 else INTS
    return code(kind, (kind.element,), lambda context, builder, values: spread_value(builder, values[0]))


@intrinsic
def floats(typingctx: Any, v: Any) -> Any:
    """v as float32, rounded."""

    def make(context: Any, builder: ir.IRBuilder, values: Any) -> ir.Value:
        return values[0] if v == FLOATS else builder.sitofp(values[0], vector(_F32))

    return code(FLOATS, (v,), make)


@intrinsic
def rint(typingctx: Any, v: Any) -> Any:
    """Round to the nearest whole number, halves to the even one."""
    return code(FLOATS, (FLOATS,), lambda context, builder, values: call(builder, "rint.v16f32", *values))


@intrinsic
def multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, in one rounding where the machine can."""
    return code(FLOATS, (FLOATS,) * 3, lambda context, builder, values: call(builder, "fmuladd.v16f32", *values))


@intrinsic
def clamp(typingctx: Any, v: Any, low: Any, high: Any) -> Any:
    """v, at least low and at most high, which are vectors too."""

    def make(context: Any, builder: ir.IRBuilder, values: Any) -> ir.Value:
        v, low, high = values
        v = builder.select(builder.fcmp_ordered("<", v, low), low, v)
        return builder.select(builder.fcmp_ordered(">", v, high), high, v)

    return code(FLOATS, (FLOATS,) * 3, make)


@intrinsic
def within(typingctx: Any, v: Any, low: Any, high: Any) -> Any:
    """uint16, the lowest bit first: whether low <= v <= high."""

    def make(context: Any, builder: ir.IRBuilder, values: Any) -> ir.Value:
        v, low, high = values
        both = builder.and_(builder.fcmp_ordered(">=", v, low), builder.fcmp_ordered("<=", v, high))
        return builder.bitcast(both, _I16)

    return code(types.uint16, (FLOATS,) * 3, make)


@intrinsic
def where(typingctx: Any, bits: Any, v: Any) -> Any:
    """v where a bit of the uint16 is set, else 0."""

    def make(context: Any, builder: ir.IRBuilder, values: Any) -> ir.Value:
        chosen = builder.bitcast(values[0], vector(ir.IntType(1)))
        return builder.select(chosen, values[1], ir.Constant(vector(_F32), None))

    return code(FLOATS, (types.uint16, FLOATS), make)


def _define(symbol: Callable[[Any, Any], Any], of_floats: str, of_ints: str | None = None) -> None:
    """Let an operator work on two vectors of a kind."""

    @intrinsic
    def compute(typingctx: Any, a: Any, b: Any) -> Any:
        name = of_floats if a == FLOATS else of_ints
        return code(a, (a, a), lambda context, builder, values: getattr(builder, name)(*values))

    @overload(symbol)
    def typed(a, b):
        if isinstance(a, VectorType) and a == b and (a == FLOATS or of_ints):
            return lambda a, b: compute(a, b)
        return None


_define(operator.add, "fadd", "add")
_define(operator.sub, "fsub", "sub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")
