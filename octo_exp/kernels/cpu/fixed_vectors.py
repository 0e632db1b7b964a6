"""Sixteen sums to sixteen codes at once: the arithmetic of `fixed` as one vector operation for compiled loops."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from octo_exp.kernels.cpu.vectors import INTS, LANES

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_WIDE = ir.VectorType(_I64, LANES)


def _whole(value: int) -> ir.Constant:
    return ir.Constant(_WIDE, [value] * LANES)


def _drop(builder: ir.IRBuilder, magnitude: ir.Value, shift: ir.Value) -> ir.Value:
    """magnitude / 2^shift, halves to even; nothing where shift is 0."""
    one = _whole(1)
    odd = builder.and_(builder.lshr(magnitude, shift), one)
    half = builder.add(builder.sub(builder.lshr(builder.shl(one, shift), one), one), odd)
    half = builder.select(builder.icmp_signed(">", shift, _whole(0)), half, _whole(0))
    return builder.lshr(builder.add(magnitude, half), shift)


def _exactly(builder: ir.IRBuilder, product: ir.Value, shift: ir.Value) -> ir.Value:
    """round(round24(product) / 2^shift), as `fixed` has it."""
    negative = builder.icmp_signed("<", product, _whole(0))
    magnitude = builder.select(negative, builder.neg(product), product)
    kind = ir.FunctionType(_WIDE, [_WIDE, ir.IntType(1)])
    zeros_of = cgutils.get_or_insert_function(builder.module, kind, f"llvm.ctlz.v{LANES}i64")
    # 24 bits leave 40 zeros before them.
    excess = builder.sub(_whole(40), builder.call(zeros_of, [magnitude, ir.Constant(ir.IntType(1), 0)]))
    excess = builder.select(builder.icmp_signed(">", excess, _whole(0)), excess, _whole(0))
    rounded = _drop(builder, builder.shl(_drop(builder, magnitude, excess), excess), shift)
    return builder.select(negative, builder.neg(rounded), rounded)


@intrinsic
def requantized(typingctx: Any, acc: Any, offset: Any, value: Any, shift: Any, zero: Any) -> Any:
    """Codes of the sums acc + offset, as `fixed.requantize`: vectors of int32, zero a number.

    Beyond 2^(shift + 9) a product is clamped whatever its last bits, and below that round24 moves it by less than
    2^(shift - 15): so only what lies so near to a half, a vector in a thousand, is rounded step by step.
    """
    signature = INTS(INTS, INTS, INTS, INTS, types.int64)

    def make(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        acc, offset, value, shift = (builder.sext(v, _WIDE) for v in values[:4])
        one = _whole(1)
        product = builder.mul(builder.add(acc, offset), value)
        whole = builder.shl(one, shift)
        near = builder.lshr(whole, _whole(15))
        near = builder.add(near, one)
        raised = builder.add(product, builder.lshr(whole, one))
        room = cgutils.alloca_once_value(builder, builder.ashr(raised, shift))
        rest = builder.and_(builder.add(raised, near), builder.sub(whole, one))
        close = builder.icmp_signed("<=", rest, builder.shl(near, one))
        # Lanes beyond an array's end have no value.
        close = builder.and_(close, builder.icmp_signed(">", value, _whole(0)))
        some = builder.bitcast(close, ir.IntType(LANES))
        with builder.if_then(builder.icmp_unsigned("!=", some, ir.Constant(some.type, 0)), likely=False):
            builder.store(_exactly(builder, product, shift), room)
        empty = ir.Constant(_WIDE, ir.Undefined)
        first = builder.insert_element(empty, values[4], ir.Constant(_I32, 0))
        zeros = builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))
        code = builder.add(builder.load(room), zeros)
        for bound, sign in ((-128, "<"), (127, ">")):
            code = builder.select(builder.icmp_signed(sign, code, _whole(bound)), _whole(bound), code)
        return builder.trunc(code, ir.VectorType(_I32, LANES))

    return signature, make


@intrinsic
def store_codes(typingctx: Any, array: Any, at: Any, count: Any, v: Any) -> Any:
    """array[at : at + count] = v, int32 to int8; count at most 16."""
    signature = types.void(array, types.intp, types.intp, v)

    def make(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        data = context.make_array(array)(context, builder, values[0]).data
        target = builder.bitcast(builder.gep(data, [values[1]]), _I8.as_pointer())
        codes = builder.trunc(values[3], ir.VectorType(_I8, LANES))
        room = cgutils.alloca_once(builder, codes.type)
        whole = builder.icmp_signed(">=", values[2], ir.Constant(values[2].type, LANES))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                builder.store(codes, builder.bitcast(target, codes.type.as_pointer()), align=1)
            with otherwise:
                builder.store(codes, room)
                cgutils.raw_memcpy(builder, target, room, values[2], 1)
        return context.get_dummy_value()

    return signature, make
