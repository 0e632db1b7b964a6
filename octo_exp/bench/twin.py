"""The twin run: one training step by the fast path and, layer by layer on the same tensors, by the exact reference.

    python -m octo_exp.bench.twin model=vgg11 data=cifar10 --quant octo --batch 8

Every quantised layer must give the same integers (codes of x, w and g) and the same floats: output, gradients of the
input, the weight and the bias. Budget of a float: one rounding more or less of the product with the scale and of the
sum with the offset, 2^-23 of the tensor's largest magnitude.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from octo_exp.base.errors import FailedError, UserError
from octo_exp.bench.command import failed
from octo_exp.bench.subjects import Subject, build
from octo_exp.nn.convert import set_impl
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.quantizer import QTensor

FLOATS = ("y", "dx", "dw", "db")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One layer: were all codes equal, and by which share of its budget did each float differ (None: not made)."""

    layer: str
    integers_equal: bool
    share_of_budget: dict[str, float | None]

    @property
    def holds(self) -> bool:
        """Whether integers are equal and floats within the budget."""
        return self.integers_equal and all(share is None or share <= 1 for share in self.share_of_budget.values())


class _Recorder:
    """Keeps what went in and came out of every quantised layer in one step."""

    def __init__(self, net: nn.Module) -> None:
        self.layers = {name: module for name, module in net.named_modules() if isinstance(module, QuantLayer)}
        self.before = {name: _copy(module) for name, module in self.layers.items()}
        self.tensors: dict[str, dict[str, Tensor]] = {name: {} for name in self.layers}
        self.codes: dict[str, dict[str, Tensor]] = {name: {} for name in self.layers}
        for name, layer in self.layers.items():
            layer.observer = self._observe(name)
            layer.register_forward_hook(self._forward(name))
            # The layer's own share of dx, where others read x as well.
            layer.register_full_backward_hook(self._backward(name))

    def _observe(self, name: str) -> Any:
        def observe(layer: QuantLayer, operand: str, t: Tensor, q: QTensor) -> None:
            self.codes[name][operand] = q.values.clone()

        return observe

    def _forward(self, name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept = self.tensors[name]
            kept["x"], kept["y"] = inputs[0].detach().clone(), output.detach().clone()

        return hook

    def _backward(self, name: str) -> Any:
        def hook(layer: nn.Module, dx: tuple[Tensor | None, ...], g: tuple[Tensor, ...]) -> None:
            kept = self.tensors[name]
            kept["g"] = g[0].detach().clone()
            if dx[0] is not None:
                kept["dx"] = dx[0].detach().clone()

        return hook


def _copy(layer: QuantLayer) -> QuantLayer:
    twin = copy.deepcopy(layer)
    set_impl(twin, "reference")
    return twin


def compare(subject: Subject) -> list[Comparison]:
    """Run one step of the subject and each of its quantised layers again by reference."""
    recorder = _Recorder(subject.net)
    subject.optimizer.zero_grad()
    subject.loss().backward()
    found = []
    for name, layer in recorder.layers.items():
        fast = dict(recorder.tensors[name])
        for key, parameter in (("dw", layer.weight), ("db", layer.bias)):
            if parameter is not None and parameter.grad is not None:
                fast[key] = parameter.grad
        found.append(_compare_layer(name, recorder.before[name], fast, recorder.codes[name]))
    return found


def _compare_layer(name: str, layer: QuantLayer, fast: dict[str, Tensor], codes: dict[str, Tensor]) -> Comparison:
    exact: dict[str, Tensor] = {}
    layer.observer = lambda module, operand, t, q: exact.__setitem__(operand, q.values.clone())
    x = fast["x"].requires_grad_("dx" in fast)
    y = layer.train()(x)
    y.backward(fast["g"])
    slow = {"y": y.detach(), "dx": x.grad, "dw": layer.weight.grad}
    if layer.bias is not None:
        slow["db"] = layer.bias.grad
    equal = codes.keys() == exact.keys() and all(torch.equal(codes[key], exact[key]) for key in codes)
    shares = {key: _share(fast.get(key), slow.get(key)) for key in FLOATS}
    return Comparison(layer=name, integers_equal=equal, share_of_budget=shares)


def _share(fast: Tensor | None, slow: Tensor | None) -> float | None:
    if fast is None or slow is None:
        return None
    largest = float(torch.maximum(fast.abs().max(), slow.abs().max()))
    return float((fast - slow).abs().max()) / (largest * 2**-23) if largest > 0 else 0.0


def check(subject: Subject) -> None:
    """Raise UserError with the layers' names where the fast path is not the reference's twin."""
    wrong = [comparison.layer for comparison in compare(subject) if not comparison.holds]
    if wrong:
        raise FailedError(f"{subject.name}: the fast path differs from the reference in {', '.join(wrong)}")


def show(found: Sequence[Comparison], title: str, console: Console) -> None:
    """Print a row a layer."""
    table = Table(title=title, caption="floats: largest difference as a share of the budget; 0 is bit-identical")
    for column in ("layer", "codes of x, w, g", *FLOATS):
        table.add_column(column)
    for comparison in found:
        shares = ["-" if share is None else f"{share:.2g}" for share in comparison.share_of_budget.values()]
        style = None if comparison.holds else "red"
        table.add_row(comparison.layer, "equal" if comparison.integers_equal else "DIFFER", *shares, style=style)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; exit code 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="model=vgg11 data=cifar10 ...")
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_intermixed_args(arguments)
    try:
        subject = build(options.quant, options.overrides, batch_size=options.batch)
        found = compare(subject)
        if not found:
            raise UserError(f"quant={options.quant}: no layer is quantised, so there is nothing to compare")
    except UserError as error:
        return failed(error)
    show(found, f"{' '.join(options.overrides)} quant={options.quant}: fast path and reference", Console(markup=False))
    return 0 if all(comparison.holds for comparison in found) else 1


if __name__ == "__main__":
    sys.exit(main())
