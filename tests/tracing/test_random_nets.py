"""The GEMMs of random networks against real passes on data: every product formed, every element read, every gradient.

The oracle forms the products themselves: columns of the padded input times weights. That they are the right ones shows
in their sums, which are the layer's output and autograd's gradients.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn
from torch.nn import functional as F

from octo_exp.workload import GRAD_INPUT_FORMS
from tests.tracing.helpers import traced
from tests.tracing.random_nets import cases

# torch would rather not pad one side more.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


class Probe(torch.autograd.Function):
    """Passes x and its gradient on, and calls back with the gradient where autograd computes it."""

    @staticmethod
    def forward(ctx, x, call):
        ctx.call = call
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.call.grad_input = g
        return g, None


class OutputProbe(Probe):
    @staticmethod
    def backward(ctx, g):
        ctx.call.grad_output = g
        return g, None


@dataclass
class Call:
    """What one execution of a layer read, made and was given back."""

    layer: nn.Module
    name: str
    x: torch.Tensor | None = None
    y: torch.Tensor | None = None
    grad_input: torch.Tensor | None = None
    grad_output: torch.Tensor | None = None
    grad_weight: torch.Tensor | None = None


def executed(case):
    """The calls of a real forward and backward pass, in order."""
    calls, seen = [], {}

    def before(module, inputs):
        seen[module] = seen.get(module, 0) + 1
        name = names[module] if seen[module] == 1 else f"{names[module]}#{seen[module]}"
        calls.append(Call(layer=module, name=name, x=inputs[0].detach()))
        return (Probe.apply(inputs[0], calls[-1]),)

    def after(module, inputs, output):
        calls[-1].y = output.detach()
        return OutputProbe.apply(output, calls[-1])

    net, names = case.net, {}
    for name in case.frozen:
        net.get_submodule(name).requires_grad_(False)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            names[module] = name
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)
    out = net(torch.randn(case.batch_size, *case.shape, dtype=torch.double))
    if out.requires_grad:
        out.square().sum().backward()
    return calls


def padding_of(conv):
    """(left, right, top, bottom): what `same` adds goes to both sides, the odd one to the right and the bottom."""
    if conv.padding != "same":
        (top, left) = conv.padding
        return left, left, top, top
    (rows, columns) = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def columns_of(conv, x):
    """[B, C, H, W] -> [B, groups, C/groups*window, positions], one column for every window."""
    columns = F.unfold(F.pad(x, padding_of(conv)), conv.kernel_size, conv.dilation, 0, conv.stride)
    return columns.unflatten(1, (conv.groups, -1))


def spread(conv, g, size):
    """The gradient with zeros between and around it, so that a dense convolution of it has the input's positions."""
    left, _, top, _ = padding_of(conv)
    batch, channels, rows, cols = g.shape
    (sy, sx), (ky, kx), (dy, dx) = conv.stride, conv.kernel_size, conv.dilation
    wide = g.new_zeros(batch, channels, (rows - 1) * sy + 1, (cols - 1) * sx + 1)
    wide[:, :, ::sy, ::sx] = g
    before_y, before_x = dy * (ky - 1) - top, dx * (kx - 1) - left
    after_y = size[0] + top - wide.shape[2]
    after_x = size[1] + left - wide.shape[3]
    return F.pad(wide, (before_x, after_x, before_y, after_y))


def products_of(call, form):
    """Role -> every product of a call, with the dimension that is summed; see the module's docstring."""
    layer, x, g = call.layer, call.x, call.grad_output
    w = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        x, g = x.flatten(0, -2), None if g is None else g.flatten(0, -2)
        yield "output", x[:, None] * w, -1
        if g is not None:
            yield "grad_input", g[..., None] * w, 1
            yield "grad_weight", g[..., None] * x[:, None], 0
        return
    columns = columns_of(layer, x)
    kernels = w.flatten(1).unflatten(0, (layer.groups, -1))
    yield "output", columns[:, :, None] * kernels[..., None], 3
    if g is None:
        return
    grads = g.flatten(2).unflatten(1, (layer.groups, -1))
    yield "grad_weight", grads[:, :, :, None] * columns[:, :, None], (0, 4)
    if form == "col2im":
        yield "grad_input", grads[:, :, :, None] * kernels[..., None], 2
        return
    windows = F.unfold(spread(layer, g, x.shape[2:]), layer.kernel_size, layer.dilation)
    turned = w.flip(2, 3).unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(2)
    yield "grad_input", windows.unflatten(1, (layer.groups, -1))[:, :, None] * turned[..., None], 3


def check_products(call, gemms, form):
    """MACs are the products formed, and these add up to what torch computed."""
    layer = call.layer
    for role, products, summed in products_of(call, form):
        if role not in gemms:
            continue
        gemm, result = gemms[role], products.sum(summed)
        assert gemm.macs == products.numel(), (call.name, role)
        assert gemm.m * gemm.n * gemm.count == result.numel()
        if role == "grad_weight":
            # Compared in `check`, where every call's part is known.
            call.grad_weight = result.reshape(layer.weight.shape)
            continue
        want = call.y if role == "output" else call.grad_input
        if role == "output" and layer.bias is not None:
            want = want - (layer.bias if want.dim() < 4 else layer.bias[:, None, None]).detach()
        if role == "grad_input" and form == "col2im" and isinstance(layer, nn.Conv2d):
            result = folded(call, result)
        torch.testing.assert_close(result.reshape(want.shape), want, rtol=1e-9, atol=1e-9)


def folded(call, columns):
    """The columns' gradients added up where they came from, the padding cut off."""
    conv, (left, _, top, _) = call.layer, padding_of(call.layer)
    height, width = call.x.shape[2:]
    padded = F.pad(call.x[:1], padding_of(conv)).shape[2:]
    image = F.fold(columns.flatten(1, 2), padded, conv.kernel_size, conv.dilation, 0, conv.stride)
    return image[:, :, top : top + height, left : left + width]


def check_elements(call, gemms):
    """Distinct elements are those that some product reads: marked by their numbers, padding by zero."""
    layer, x = call.layer, call.x
    marked = torch.arange(1, x.numel() + 1, dtype=torch.double).reshape(x.shape)
    if isinstance(layer, nn.Conv2d):
        marked = columns_of(layer, marked)
    # Where every window lies in the padding, one zero a channel.
    read = int(torch.count_nonzero(torch.unique(marked))) or x.shape[0] * x.shape[1]
    w, y = layer.weight.numel(), call.y.numel()
    want = {"output": (read, w), "grad_input": (y, w), "grad_weight": (read, y)}
    for role, gemm in gemms.items():
        assert (gemm.elements_a * gemm.count, gemm.elements_b * gemm.count) == want[role], (call.name, role)


def check(case):
    calls = executed(case)
    for form in GRAD_INPUT_FORMS:
        workload = traced(case.net, case.shape, batch_size=case.batch_size, form=form, frozen=case.frozen)
        found = {}
        for gemm in workload.gemms:
            found.setdefault(gemm.layer, {})[gemm.role] = gemm
        assert list(found) == [call.name for call in calls]
        for call in calls:
            gemms = found[call.name]
            owed = {"output": True, "grad_input": call.grad_input is not None}
            owed["grad_weight"] = call.layer.weight.grad is not None
            assert list(gemms) == [role for role, is_owed in owed.items() if is_owed], call.name
            check_products(call, gemms, form)
            check_elements(call, gemms)
        for layer in {call.layer for call in calls if call.layer.weight.grad is not None}:
            parts = [call.grad_weight for call in calls if call.layer is layer]
            torch.testing.assert_close(sum(parts), layer.weight.grad, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(cases())
def test_random_networks_against_passes_on_data(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=list(HealthCheck))
@given(cases())
def test_a_thousand_random_networks_against_passes_on_data(case):
    """Half a minute."""
    check(case)
