"""The rate of each kernel of a training step, and its share of this machine's ceiling, measured in the same run.

    python -m octo_exp.bench.kernels model=vgg11 data=cifar10 --batch 128

GEMM work (a convolution counts its multiply-adds) is held against the fastest of some well-shaped int8 GEMMs, passes
over memory against a copy. Each kernel is checked against the plain torch form before it is timed.
"""

import functools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from octo_exp.base.errors import FailedError, UserError
from octo_exp.bench.command import parser_of, report
from octo_exp.bench.measure import alternate, describe, machine
from octo_exp.bench.subjects import batch, config, float_net
from octo_exp.kernels.finish import Finish, Limits
from octo_exp.kernels.ops import Backend, ConvGeometry, backend
from octo_exp.workload import Epilogue

_PLAIN = backend("reference", "cpu")
# Well-shaped int8 GEMMs: rows, depth, columns.
CEILINGS = [(4096, 4096, 4096), (4096, 4096, 512), (2048, 2304, 512), (8192, 2304, 256)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kernel on one shape: `run(backend)`, and its work, in operations (a multiply-add is 2) or bytes."""

    name: str
    run: Callable[[Backend], Any]
    operations: int = 0
    bytes: int = 0


def codes(*shape: int) -> Tensor:
    """Return keyed random int8 codes, channels-last where 4-D."""
    t = torch.randint(-127, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def geometry_of(conv: nn.Conv2d) -> ConvGeometry:
    """Return what the kernels ask of a convolution."""
    return ConvGeometry(
        stride=_pair(conv.stride), padding=_pair(conv.padding), dilation=_pair(conv.dilation), groups=conv.groups
    )


def conv_cases(name: str, conv: nn.Conv2d, shape: Sequence[int]) -> list[Case]:
    """Return the cases of one convolution layer on inputs of `shape` [N, C, H, W]."""
    n, c, h, w = shape
    o, kernel = conv.out_channels, _pair(conv.kernel_size)
    geometry = geometry_of(conv)
    oh, ow = geometry.output_size(h, w, kernel)
    x, weight, g = codes(n, c, h, w), codes(o, c // conv.groups, *kernel), codes(n, o, oh, ow)
    scale, work = torch.tensor(1e-4), 2 * n * oh * ow * o * weight[0].numel()
    steps = Epilogue(relu=True, pool=2 if min(oh, ow) > 1 else 1)
    floats = x.float()
    y = g.float()
    mask = _PLAIN.activate(y, steps)[1]
    pooled = torch.randn(n, o, oh // steps.pool, ow // steps.pool).contiguous(memory_format=torch.channels_last)
    zero = torch.zeros(())

    def output(on: Backend) -> Any:
        return on.conv2d_scaled(x, weight, geometry, 0, Finish(scale, steps=steps))

    def grad_weight(on: Backend) -> Any:
        return on.conv2d_grad_weight_scaled(x, g, kernel, geometry, 0, Finish(scale))

    def grad_input(on: Backend) -> Any:
        return on.conv2d_grad_input_scaled(g, weight, (h, w), geometry, scale=scale)

    def quantize(on: Backend) -> Any:
        return on.quantize(floats, scale, zero, Limits(-127, 127))

    def spread(on: Backend) -> Any:
        return None if mask is None else on.spread(pooled, mask, steps, (oh, ow))

    cases = [
        Case(name=f"{name} output + ReLU + pool", run=output, operations=work),
        Case(name=f"{name} grad_input", run=grad_input, operations=work),
        Case(name=f"{name} grad_weight", run=grad_weight, operations=work),
        Case(name=f"{name} quantise x", run=quantize, bytes=x.numel() * 5),
    ]
    if mask is not None and steps.pool > 1:
        cases.append(Case(name=f"{name} spread g", run=spread, bytes=4 * y.numel() + 5 * pooled.numel()))
    return cases


def _pair(sizes: str | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(sizes, str):
        raise UserError(f"padding={sizes} is measured as numbers; give them")
    height, width = sizes
    return height, width


def compiled_cases(name: str, conv: nn.Conv2d, shape: Sequence[int]) -> list[Case]:
    """Return the elementwise steps of a layer by torch.compile, in the plain form that it compiles: for comparison."""
    n, c, h, w = shape
    x, scale = codes(n, c, h, w).float(), torch.tensor(0.5)
    y = torch.randn(n, conv.out_channels, h, w).contiguous(memory_format=torch.channels_last)

    def plain_quantize(t: Tensor) -> Tensor:
        return (t / scale).round().clamp(-127, 127).to(torch.int8)

    def plain_activate(t: Tensor) -> tuple[Tensor, Tensor]:
        peak, index = torch.nn.functional.max_pool2d(t, 2, return_indices=True)
        return peak.relu(), torch.where(peak > 0, index, -1).to(torch.int32)

    quick_quantize, quick_activate = torch.compile(plain_quantize), torch.compile(plain_activate)
    steps, size = Epilogue(relu=True, pool=2), 4 * y.numel() + 5 * y.numel() // 4
    zero = torch.zeros(())

    def quantize(on: Backend) -> Any:
        return on.quantize(x, scale, zero, Limits(-127, 127)) if on is _PLAIN else quick_quantize(x)

    def activate(on: Backend) -> Any:
        return on.activate(y, steps)[0] if on is _PLAIN else quick_activate(y)[0]

    return [
        Case(name=f"{name} quantise x, torch.compile", run=quantize, bytes=5 * x.numel()),
        Case(name=f"{name} ReLU + pool, torch.compile", run=activate, bytes=size),
        Case(name=f"{name} ReLU + pool", run=lambda on: on.activate(y, steps)[0], bytes=size),
    ]


def layers(overrides: Sequence[str], batch_size: int) -> list[tuple[str, nn.Conv2d, tuple[int, ...]]]:
    """Return (name, convolution, input shape) of a model's convolutions, the first left out: it stays float."""
    cfg = config(overrides)
    net, found = float_net(cfg), []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda m, inputs, name=name: found.append((name, m, tuple(inputs[0].shape)))
            )
    with torch.no_grad():
        net.eval()(batch(cfg, 1)[0])
    return [(name, conv, (batch_size, *shape[1:])) for name, conv, shape in found[1:]]


def _matmul(a: Tensor, b: Tensor, on: Backend) -> Tensor:
    return on.int8_matmul(a, b)


def ceilings() -> list[Case]:
    """Return what the others are held against: well-shaped int8 GEMMs, a copy of 32 MiB."""
    cases = []
    for m, k, n in CEILINGS:
        a, b = codes(m, k), codes(n, k).t()
        name, work = f"int8 GEMM {m} x {k} x {n}", 2 * m * k * n
        cases.append(Case(name=name, run=functools.partial(_matmul, a, b), operations=work))
    source = torch.empty(2**23)
    target = torch.empty_like(source)
    return [*cases, Case(name="copy 32 MiB", run=lambda _: target.copy_(source), bytes=2 * 4 * 2**23)]


def check(case: Case, impl: str) -> None:
    """Raise UserError where the kernel does not give what the plain torch form gives."""
    fast, slow = case.run(backend(impl, "cpu")), case.run(_PLAIN)
    pairs = zip(fast, slow, strict=True) if isinstance(fast, tuple) else [(fast, slow)]
    if not all((a is None and b is None) or torch.equal(a, b) for a, b in pairs):
        raise FailedError(f"{case.name}: kernel={impl} differs from the reference: nothing is printed")


def measure(
    overrides: Sequence[str], *, impl: str, batch_size: int, rounds: int, check_batch: int, compiled: bool = False
) -> dict[str, Any]:
    """Return rates and shares of the ceilings, every kernel of the model's convolutions."""
    for name, conv, shape in layers(overrides, check_batch):
        for case in conv_cases(name, conv, shape):
            check(case, impl)
    found = layers(overrides, batch_size)
    cases = [case for name, conv, shape in found for case in conv_cases(name, conv, shape)]
    if compiled:
        cases = [*compiled_cases(*found[0]), *cases]
        for case in cases[:2]:
            check(case, impl)
    top, on = ceilings(), backend(impl, "cpu")
    steps = {case.name: (lambda case=case: case.run(on)) for case in [*top, *cases]}
    medians = {name: statistics.median(values) for name, values in alternate(steps, warmup=2, rounds=rounds).items()}
    rates = {case.name: (case.operations or case.bytes) / medians[case.name] / 1e6 for case in [*top, *cases]}
    rows = []
    for case in [*top, *cases]:
        ceiling = max(rates[other.name] for other in top if bool(other.operations) == bool(case.operations))
        rows.append(
            {
                "kernel": case.name,
                "ms": medians[case.name],
                "rate": rates[case.name],
                "unit": "GOP/s" if case.operations else "GB/s",
                "share": rates[case.name] / ceiling,
            }
        )
    return {"overrides": list(overrides), "batch": batch_size, "impl": impl, "machine": machine(), "kernels": rows}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print a row a kernel."""
    title = f"{' '.join(result['overrides'])}, batch {result['batch']}, kernel={result['impl']}"
    table = Table(title=title, caption=describe(result["machine"]))
    for column in ("kernel", "ms", "rate", "of the ceiling"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for row in result["kernels"]:
        table.add_row(row["kernel"], f"{row['ms']:.2f}", f"{row['rate']:,.0f} {row['unit']}", f"{row['share']:.0%}")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the JSON where asked."""
    parser = parser_of(__doc__)
    parser.add_argument("--impl", default="torch", choices=("torch", "triton"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--compile", action="store_true", help="add elementwise steps by torch.compile")
    options = parser.parse_intermixed_args(arguments)
    settings = {
        "impl": options.impl,
        "batch_size": options.batch,
        "rounds": options.rounds,
        "compiled": options.compile,
    }
    return report(options, lambda: measure(options.overrides, check_batch=2, **settings), show)


if __name__ == "__main__":
    sys.exit(main())
