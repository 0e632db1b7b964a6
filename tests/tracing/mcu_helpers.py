"""Small graphs under update rules, and what autograd keeps of them."""

from dataclasses import replace

import torch

from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.trained import NOTHING
from octo_exp.graph.train.update.rule import UpdateRule
from octo_exp.graph.train.update.selection import SparseUpdate
from octo_exp.tracing import trace
from tests.graph.helpers import tiny_model
from tests.graph.update.helpers import sparse

SIDE = 16


def rule(*, optimizer="sgd_nomom", mode="released", **changes) -> UpdateRule:
    """Train everything, but for the changes of the sparse update."""
    return UpdateRule(
        sparse=SparseUpdate(**sparse(**changes)),
        optimizer=optimizer,
        mode=mode,
        lr=0.01,
        weight_decay=0.0,
        budget_kb=None,
        search=None,
    )


def tiny(*, head="fp", mode="integer", spec=None, classes=5, quantize_gradient=False, **changes) -> McuNet:
    """A small graph of 16x16 images under an update."""
    spec = tiny_model() if spec is None else spec
    net = McuNet(spec, num_classes=classes, head=head, mode=mode, quantize_gradient=quantize_gradient)
    rule(**changes).apply(net)
    return net


def freeze(net: McuNet, *indices: int) -> McuNet:
    """Train nothing of some convolutions."""
    for index in indices:
        conv = net.convs[index]
        conv.update = replace(NOTHING)
        conv.weight.requires_grad_(False)
        conv.bias.requires_grad_(False)
    return net


def priced(net, *, batch_size=3, side=SIDE, form="col2im", **options):
    return trace(net, (3, side, side), batch_size=batch_size, grad_input_form=form, **options)


def saved_by_step(net, *, batch_size=3, side=SIDE):
    """Bytes that autograd keeps of each step that keeps any, in order: its bits or places first, then its codes."""
    owned = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    found, seen = [], set()

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in owned | set(seen):
            # Kept alive, so that no other tensor gets its address.
            alive.append(t.detach())
            seen.add(storage.data_ptr())
            if t.dtype == torch.int8:
                found[-1] += storage.nbytes()
            else:
                found.append(storage.nbytes())
        return t

    alive = []
    x = torch.randint(-127, 128, (batch_size, 3, side, side)).float()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        net(x)
    return [size for size in found if size]


def kept_by_step(workload):
    """The same as the workload says it, by layer in order of the backward pass's end."""
    found = {}
    for buffer in sorted((b for b in workload.buffers if b.kept), key=lambda b: -b.last):
        found[buffer.layer] = found.get(buffer.layer, 0) + buffer.bytes
    return list(found.values())
