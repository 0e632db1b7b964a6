"""Back from a trained quantised net to plain torch: weights as they are, LAC's constants in the biases."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from octo_exp.base.errors import UserError
from octo_exp.nn.layers import QuantLayer


@torch.no_grad()
def folded(net: nn.Module, fresh: nn.Module) -> nn.Module:
    """Return `fresh` with the weights of `net`, in eval mode; it computes what `net` does but for the quantisation.

    In evaluation the ranges are stored ones, so LAC's term is a constant: in its zero-point form
    -theta*s_x*z_x*sum(w^), in its affine form alpha*mu + offset. A layer without bias gets one. The oracle gives back
    all that quantisation took, so nothing is left to fold. Parametrised weights (weight norm, pruning) become plain.

    Args:
        net: a net under any scheme, trained.
        fresh: the same model as it was before conversion; changed in place.

    Raises:
        UserError: a compensation that is no constant of a channel.

    """
    state = net.state_dict()
    fresh.load_state_dict({name: state[name] for name in fresh.state_dict()})
    net.eval()
    make_plain(fresh.eval())
    for name, layer in net.named_modules():
        if isinstance(layer, QuantLayer) and layer.compensator is not None:
            term = _constant(name, layer)
            if term is not None:
                _add_to_bias(fresh.get_submodule(name), term)
    return fresh


def make_plain(net: nn.Module) -> None:
    """Let every weight that is computed from other tensors be a parameter of its present value."""
    for module in net.modules():
        if parametrize.is_parametrized(module):
            _let_have_own_class(module)
            for name, _ in list(module.get_submodule("parametrizations").named_children()):
                parametrize.remove_parametrizations(module, name)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)


def _let_have_own_class(module: nn.Module) -> None:
    """Take a module out of the class that torch made for it, which its copies share and lose their weight with."""
    made = type(module)
    content = {key: value for key, value in vars(made).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(made.__name__, made.__bases__, content)


@torch.no_grad()
def constant_compensation(layer: QuantLayer) -> Tensor | None:
    """Return what LAC adds in evaluation, [C] or [C, H, W]; None without LAC. Eval mode: ranges are stored ones."""
    w = layer.weight
    xq = None if layer.quantizer_x is None else layer.quantizer_x(w.new_zeros(1))
    wq = None if layer.quantizer_w is None else layer.quantizer_w(w)
    sums = None if wq is None else layer.op.weight_sums(wq.values)
    return layer.compensation(w, xq, wq, sums)[0]


def _constant(name: str, layer: QuantLayer) -> Tensor | None:
    for hook in layer._forward_pre_hooks.values():
        # These compute the weight before each forward pass; the last was before the last step.
        if isinstance(hook, prune.BasePruningMethod | WeightNorm | SpectralNorm):
            hook(layer, ())
    term = constant_compensation(layer)
    if term is not None and term.dim() > 1:
        raise UserError(
            f"layer {name}: compensation.granularity=element has a number for each pixel, and a bias one for each "
            "channel; train with quant.compensation.granularity=channel"
        )
    return term


def _add_to_bias(layer: nn.Module, term: Tensor) -> None:
    # No parameter where it was computed from other tensors.
    weight: Any = layer.weight
    bias = layer.bias + term if isinstance(layer.bias, Tensor) else term
    layer.bias = nn.Parameter(bias.to(weight))
