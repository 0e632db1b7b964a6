"""Networks of other people: parametrised and subclassed layers, hooks; quantised as what they compute, or named."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils import spectral_norm as hooked_spectral_norm

from octo_exp.base.errors import UserError
from octo_exp.graph.calibrate import quantize_network
from octo_exp.graph.calibrate.unwrapped import plain_copy
from octo_exp.graph.spec import ModelSpec

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Named(nn.Conv2d):
    """A subclass that computes what its class does."""


class Doubled(nn.Conv2d):
    """A subclass that does not."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def net(conv: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    first = nn.Conv2d(3, 5, 3, padding=1) if conv is None else conv
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 16, 4))


def quantised(model: nn.Module) -> ModelSpec:
    settings = {"activations": "absmax", "percentile": 99.9, "symmetric": False, "weights_per_channel": True}
    return quantize_network(model, [IMAGES], **settings)


def assert_equal(found: ModelSpec, wanted: ModelSpec) -> None:
    for one, other in zip((*found.convs, found.classifier), (*wanted.convs, wanted.classifier), strict=True):
        assert (one.weight == other.weight).all()
        assert (one.bias == other.bias).all()
        assert (one.x_scale, one.x_zero, one.y_scale, one.y_zero) == (
            *(other.x_scale, other.x_zero),
            *(other.y_scale, other.y_zero),
        )
        assert (one.w_scales == other.w_scales).all()


def unparametrized(layer: nn.Module) -> None:
    parametrize.remove_parametrizations(layer, "weight")


# Name -> how a layer's weight comes to be computed, and torch's own way back.
FORMS: dict[str, tuple[Callable[[nn.Module], object], Callable[[nn.Module], object]]] = {
    "weight_norm": (parametrizations.weight_norm, unparametrized),
    "spectral_norm": (parametrizations.spectral_norm, unparametrized),
    "orthogonal": (parametrizations.orthogonal, unparametrized),
    "pruned": (lambda m: prune.l1_unstructured(m, "weight", amount=0.5), lambda m: prune.remove(m, "weight")),
    "hooked_weight_norm": (nn.utils.weight_norm, remove_weight_norm),
    "hooked_spectral_norm": (hooked_spectral_norm, remove_spectral_norm),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("form", FORMS)
def test_parametrised_layers_are_quantised_as_their_present_weights(form):
    apply, remove = FORMS[form]
    model = net()
    apply(model[0])
    apply(model[4])
    # As after a step of training: what a hook has computed is out of date, and has a history.
    model(IMAGES).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = quantised(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.eval()
    remove(model[0])
    remove(model[4])
    assert_equal(found, quantised(model))
    assert torch.equal(plain_copy(model)[0].weight, model[0].weight)


def test_a_subclass_that_computes_the_same_is_quantised():
    model, other = net(), net(Named(3, 5, 3, padding=1))
    other.load_state_dict(model.state_dict())
    assert_equal(quantised(other), quantised(model))
    assert type(other[0]) is Named


def test_hooks_that_look_on_are_left_out():
    model, seen = net(), []
    wanted = quantised(model)
    model[0].register_forward_hook(lambda module, x, y: seen.append(y.shape))
    model.register_forward_pre_hook(lambda module, x: seen.append(len(x)))
    model[1].register_forward_hook(lambda module, x, kwargs, y: None, with_kwargs=True)
    assert_equal(quantised(model), wanted)
    assert all(len(module._forward_hooks) == (place < 2) for place, module in enumerate(model))


@pytest.mark.parametrize(
    "hook", [lambda module, x, y: y * 2, lambda module, x, y: y.mul_(2) is None or None, lambda module, x, y: y]
)
@pytest.mark.parametrize("place", ["0", "4", ""])
def test_a_hook_that_changes_what_passes_is_named(hook, place):
    model = net()
    model.get_submodule(place).register_forward_hook(hook)
    with pytest.raises(UserError, match=f"^{place or 'the network'}: its forward hook changes what passes"):
        quantised(model)


def line_of(conv: nn.Module) -> nn.Module:
    """A 1-D convolution over rows of pixels, in a module of its own."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.flatten(2)).view(-1, 5, 8, 8)

    return Rows()


@pytest.mark.parametrize(
    ("conv", "words"),
    [
        (line_of(nn.Conv1d(3, 5, 1)), "0.* cannot become int8"),
        (nn.ConvTranspose2d(3, 5, 3, padding=1), "0: ConvTranspose2d cannot become int8"),
        (nn.Conv2d(3, 5, 3, padding=2, dilation=2), "0: Conv2d cannot become int8: it needs zero padding and no dila"),
        (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), "0: Conv2d cannot become int8: it needs zero padding"),
        (Doubled(3, 5, 3, padding=1), "0: .* cannot become int8"),
    ],
)
def test_what_a_graph_does_not_have_is_named(conv, words):
    with pytest.raises(UserError, match=f"^{words}") as caught:
        quantised(net(conv))
    assert "\n" not in str(caught.value)


def test_grouped_convolutions_are_quantised():
    model = net(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5 * 2, 3, padding=1, groups=2), nn.Conv2d(10, 5, 1)))
    assert [conv.groups for conv in quantised(model).convs] == [1, 2, 1]
