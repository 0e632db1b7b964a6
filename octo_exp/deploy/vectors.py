"""Sixteen sums to sixteen codes at once: the arithmetic of `fixed` as one vector operation for compiled loops."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from octo_exp.mcu.cpu_vectors import INTS, LANES

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_WIDE = ir.VectorType(_I64, LANES)


@intrinsic
def requantized(typingctx: Any, acc: Any, offset: Any, value: Any, shift: Any, zero: Any) -> Any:
    """((acc + offset) * value + 2^(shift - 1) >> shift) + zero within [-128, 127]; vectors of int32, zero a number."""
    signature = INTS(INTS, INTS, INTS, INTS, types.int64)

    def make(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        acc, offset, value, shift = (builder.sext(v, _WIDE) for v in values[:4])
        one = ir.Constant(_WIDE, [1] * LANES)
        half = builder.shl(one, builder.sub(shift, one))
        product = builder.add(builder.mul(builder.add(acc, offset), value), half)
        empty = ir.Constant(_WIDE, ir.Undefined)
        first = builder.insert_element(empty, values[4], ir.Constant(_I32, 0))
        zeros = builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))
        code = builder.add(builder.ashr(product, shift), zeros)
        for bound, sign in ((-128, "<"), (127, ">")):
            limit = ir.Constant(_WIDE, [bound] * LANES)
            code = builder.select(builder.icmp_signed(sign, code, limit), limit, code)
        return builder.trunc(code, ir.VectorType(_I32, LANES))

    return signature, make


@intrinsic
def store_codes(typingctx: Any, array: Any, at: Any, v: Any) -> Any:
    """array[at : at + 16] = v, int32 to int8."""
    signature = types.void(array, types.intp, v)

    def make(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        data = context.make_array(array)(context, builder, values[0]).data
        codes = builder.trunc(values[2], ir.VectorType(_I8, LANES))
        target = builder.bitcast(builder.gep(data, [values[1]]), codes.type.as_pointer())
        builder.store(codes, target, align=1)
        return context.get_dummy_value()

    return signature, make
