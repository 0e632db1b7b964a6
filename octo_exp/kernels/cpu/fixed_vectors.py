"""Sixteen sums to sixteen codes at once: the arithmetic of `fixed` as one vector operation for compiled loops."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from octo_exp.kernels.cpu.vectors import INTS, LANES, call, code, spread_value, vector

_WIDE = vector(ir.IntType(64))


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
    # 24 bits leave 40 zeros before them.
    zeros = call(builder, "ctlz.v16i64", magnitude, ir.Constant(ir.IntType(1), 0))
    excess = builder.sub(_whole(40), zeros)
    excess = builder.select(builder.icmp_signed(">", excess, _whole(0)), excess, _whole(0))
    rounded = _drop(builder, builder.shl(_drop(builder, magnitude, excess), excess), shift)
    return builder.select(negative, builder.neg(rounded), rounded)


@intrinsic
def requantized(typingctx: Any, acc: Any, offset: Any, value: Any, shift: Any, zero: Any) -> Any:
    """Codes of the sums acc + offset, as `fixed.requantize`: vectors of int32, zero a number.

    Beyond 2^(shift + 9) a product is clamped whatever its last bits, and below that round24 moves it by less than
    2^(shift - 15): so only what lies so near to a half, a vector in a thousand, is rounded step by step.
    """

    def make(context: Any, builder: ir.IRBuilder, values: Any) -> ir.Value:
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
        codes = builder.add(builder.load(room), spread_value(builder, values[4]))
        for bound, sign in ((-128, "<"), (127, ">")):
            codes = builder.select(builder.icmp_signed(sign, codes, _whole(bound)), _whole(bound), codes)
        return builder.trunc(codes, vector(ir.IntType(32)))

    return code(INTS, (INTS, INTS, INTS, INTS, types.int64), make)
