"""Compile every Triton kernel for the GPU of an argument, e.g. 80, with no GPU here; JSON of what the code shows.

A process of its own: Triton's interpreter must be off.
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from octo_exp.kernels.triton import conv, gemm, quantize
from octo_exp.kernels.triton.autotune import TILES

TILE = TILES[2]
BLOCKS = {"BM": TILE.m, "BN": TILE.n, "BK": TILE.k}
CODES = dict.fromkeys(("a_ptr", "b_ptr", "t_ptr", "w_ptr", "x_ptr", "g_ptr", "pad_ptr"), "*i8")
FLOATS = dict.fromkeys(("scale_ptr", "offset_ptr", "low_ptr", "out_ptr"), "*fp32")
CONV = {"CHANNELS": 48, "KH": 3, "KW": 3, "SH": 2, "SW": 1, "PH": 1, "PW": 1, "DH": 1, "DW": 1}
QUANTIZE = {"high_ptr": None, "Q_MIN": -128, "Q_MAX": 127, "BLOCK": 1024}
TENSOR = {**CODES, **FLOATS, "t_ptr": "*fp32", "zero_ptr": "*i32", "out_ptr": "*i8", "seed": "i64"}
# (kernel, types of arguments that are no i32, constants)
KERNELS = {
    "gemm": (gemm._gemm, {**CODES, **FLOATS}, {"RELU": True, **BLOCKS}),
    "conv": (conv._conv, {**CODES, **FLOATS}, {"TRANSPOSED": False, "RELU": True, **CONV, **BLOCKS}),
    "conv_grad_input": (
        conv._conv,
        {**CODES, **FLOATS},
        {"TRANSPOSED": True, "RELU": False, "offset_ptr": None, "pad_ptr": None, **CONV, **BLOCKS},
    ),
    "conv_grad_weight": (conv._grad_weight, {**CODES, "out_ptr": "*i32"}, {**CONV, **BLOCKS}),
    "scale_rows": (gemm._scale_rows, {**FLOATS, "acc_ptr": "*i32"}, {"BLOCK": 1024}),
    "quantize": (quantize._quantize, TENSOR, {"NOISY": False, "ROWS": False, **QUANTIZE}),
    "quantize_noisy_rows": (quantize._quantize, TENSOR, {"NOISY": True, "ROWS": True, **QUANTIZE}),
}


def compile_kernel(function, types: dict, constants: dict, target: GPUTarget) -> dict:
    """Return what the compiled code shows."""
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    options = TILE.launch_options()
    kernel = triton.compile(ASTSource(function, signature, constants), target=target, options=options)
    ptx = kernel.asm["ptx"]
    instructions = ("fma.rn.f32", "div.rn.f32", "div.full.f32", "mma")
    return {"shared": kernel.metadata.shared, **{name: name in ptx for name in instructions}}


if __name__ == "__main__":
    gpu = GPUTarget("cuda", int(sys.argv[1]), 32)
    sys.stdout.write(json.dumps({name: compile_kernel(*kernel, gpu) for name, kernel in KERNELS.items()}))
