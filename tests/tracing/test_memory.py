"""What the trace says is kept for the backward pass against what autograd saves, layer by layer."""

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from octo_exp.hw.liveness import step_memory
from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock
from octo_exp.runs.callbacks.kept_memory import SavedTensors
from tests.configs import compose_copy, pairwise
from tests.nn.helpers import SCHEMES, scheme
from tests.tracing.helpers import traced

# Single numbers that the trace leaves out: scales and zero points.
SCALARS = 64
SHAPE = (3, 17, 16)


def layers():
    """Every kind of layer of this project, odd sizes, channels that fill no byte."""
    return nn.Sequential(
        nn.Conv2d(3, 17, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(17, 20, (1, 3), stride=(2, 1), bias=False),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Conv2d(20, 33, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(33, 33, 2, groups=33),
        nn.Conv2d(33, 18, 1),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(36, 65),
        nn.BatchNorm1d(65),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(65, 40),
        nn.Linear(40, 24),
        nn.Tanh(),
        nn.Linear(24, 7),
    )


class Branches(nn.Module):
    """An input read twice, a sum, a concatenation, and a mean."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 17, 3, padding=1), nn.Conv2d(3, 18, 1)
        self.body = nn.Sequential(nn.Conv2d(35, 19, 3, padding=1), nn.BatchNorm2d(19), nn.ReLU())
        self.residual, self.relu = nn.Conv2d(19, 19, 3, padding=1), nn.ReLU()
        self.hidden, self.head = nn.Linear(19, 20), nn.Linear(20, 5)

    def forward(self, x):
        y = self.body(torch.cat([self.left(x), self.right(x)], 1))
        y = self.relu(y + self.residual(y))
        return self.head(self.hidden(y.mean((2, 3))))


NETS = {"layers": layers, "branches": Branches}


def quantized(net, built, shape=SHAPE, **options):
    if not built.is_float:
        convert(net, built, impl="torch", clock=Clock(), input_shape=shape, **options)
    return net


def same_bytes(net, shape=SHAPE, *, batch_size=3, autocast=False):
    # As in every run: weights channels-last, batches as they come.
    net, x = net.to(memory_format=torch.channels_last).train(), torch.randn(batch_size, *shape)
    said = step_memory(traced(net, shape, batch_size=batch_size, autocast=autocast).buffers).kept_by_layer
    # A moving range clips from the second step on.
    net(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), SavedTensors(net) as saved:
        net(x)
    real = {"" if name == "(net)" else name: size for name, size in saved.bytes_by_layer.items()}
    for name in {*said, *real}:
        assert abs(said.get(name, 0) - real.get(name, 0)) <= SCALARS, (name, said.get(name, 0), real.get(name, 0))


def shipped(model, norm, size, channels):
    overrides = [f"+model={model}", f"model.norm={norm}", f"model.image_size={size}"]
    cfg = compose_copy(None, *overrides, f"++model.in_channels={channels}", "++model.num_classes=10")
    return instantiate(cfg.model, _convert_="all")


SIZES = {"vgg11": (3, 32, 32), "resnet20": (3, 8, 8), "lenet5": (1, 32, 32)}


@pytest.mark.parametrize("case", pairwise(quant=SCHEMES, model=list(SIZES)), ids=lambda case: "-".join(case.values()))
def test_every_scheme_on_shipped_models(case):
    shape = SIZES[case["model"]]
    net = shipped(case["model"], "batch" if case["model"] == "resnet20" else "none", shape[1], shape[0])
    built = scheme(case["quant"], skip="[first,last]")
    same_bytes(quantized(net, built, shape), shape, batch_size=2, autocast=built.precision == "bf16-mixed")


CHANGES = {
    "channel": {"w__granularity": "channel"},
    "hindsight": {"x__range": "hindsight"},
    "stochastic": {"w__rounding": "stochastic"},
    "all three": {"w__granularity": "channel", "w__rounding": "stochastic", "x__range": "hindsight"},
    "norm bf16": {"norm_input": "bf16"},
    "norm fp32": {"norm_input": "fp32"},
    "grad_weight bf16": {"grad_weight": "bf16", "w__granularity": "channel"},
    "grad_weight fp32": {"grad_weight": "fp32"},
    "grad_input bf16": {"grad_input": "bf16", "w__granularity": "channel"},
    "grad_input fp32": {"grad_input": "fp32", "w__rounding": "stochastic"},
    "output fp32": {"output": "fp32", "x__range": "hindsight"},
    "output fake": {"output": "fake", "x__range": "hindsight"},
    "two bits": {"bits": 2},
    "by sample": {"x__granularity": "sample", "x_weight": "{granularity:channel}", "g_weight": "{granularity:channel}"},
    "its own w": {"w__granularity": "channel", "w_input": "{granularity:input_channel,rounding:stochastic}"},
    "floats of samples": {"x__granularity": "sample", "grad_weight": "fake"},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("skip", ["[first,last]", "[]"])
def test_changed_schemes(change, skip):
    built = scheme("int8", skip=skip, **CHANGES[change])
    same_bytes(quantized(layers(), built))
    # In float each layer keeps its own channels-last copy of the batch, which the trace counts once.
    if built.grad_weight != "fp32":
        same_bytes(quantized(Branches(), built))


@pytest.mark.parametrize(
    "form",
    [
        {"compensation": "exact"},
        *(
            {"compensation": form, "compensation__granularity": granularity}
            for form in ("affine", "zero_point")
            for granularity in ("channel", "element")
        ),
    ],
    ids=lambda form: "-".join(form.values()),
)
@pytest.mark.parametrize("changes", [{}, {"w__granularity": "channel", "grad_weight": "fp32"}], ids=["plain", "mixed"])
def test_compensation(form, changes):
    built = scheme("octo", **form, **changes)
    same_bytes(quantized(layers(), built))
    net = quantized(layers(), built)
    for layer in (net[2], net[5], net[16]):
        layer.weight.requires_grad_(False)
        if layer.compensator is not None and layer is not net[2]:
            layer.compensator.requires_grad_(False)
    same_bytes(net)


def frozen(net, parts):
    """The net with the weights, biases, or everything of some of its layers not trained."""
    owners = [module for module in net.modules() if any(True for _ in module.parameters(recurse=False))]
    chosen = {"first": owners[:1], "front": owners[: len(owners) // 2], "head": owners[:-1], "other": owners[::2]}
    for module in chosen.get(parts, owners):
        for name, parameter in module.named_parameters():
            if parts not in ("weights", "biases") or name in (parts.removesuffix("s"), parts.removesuffix("es")):
                parameter.requires_grad_(False)
    return net


@pytest.mark.parametrize("parts", ["first", "front", "other", "head", "weights", "biases", "all"])
@pytest.mark.parametrize("name", ["fp32", "int8", "octo", "fake_qat"])
@pytest.mark.parametrize("net", NETS)
def test_frozen_layers(net, name, parts):
    changes = {} if name == "fp32" else {"x__range": "hindsight", "w__granularity": "channel"}
    built = scheme(name, skip="[first]", **changes)
    same_bytes(frozen(quantized(NETS[net](), built), parts))
    same_bytes(frozen(quantized(NETS[net](), built), parts), autocast=True)


@pytest.mark.parametrize("norm_input", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("skip", ["[first,last]", "[]"])
@pytest.mark.parametrize("net", NETS)
def test_float_layers_under_autocast(net, skip, norm_input):
    same_bytes(NETS[net](), autocast=True)
    same_bytes(quantized(NETS[net](), scheme("int8", skip=skip, norm_input=norm_input)), autocast=True)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_sequences(name, autocast):
    net = nn.Sequential(nn.Linear(16, 33), nn.ReLU(), nn.Linear(33, 20, bias=False), nn.Linear(20, 18), nn.Sigmoid())
    same_bytes(quantized(net, scheme(name), (7, 16)), (7, 16), autocast=autocast)


def test_the_scale_of_a_row_is_kept_with_its_codes():
    net = nn.Sequential(nn.Linear(16, 33), nn.Linear(33, 20))
    same_bytes(quantized(net, scheme("int8", x__granularity="row", grad_weight="fake"), (40, 16)), (40, 16))


def test_a_float_role_of_a_bf16_input_keeps_its_own_copy():
    net = nn.Sequential(nn.Linear(16, 33), nn.Linear(33, 20), nn.Linear(20, 18))
    built = scheme("int8", skip="[first,last]", grad_weight="fp32")
    same_bytes(quantized(net, built, (16,)), (7, 16), autocast=True)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kept", [(0,), (2, 5), (5, 8, 9, 12, 16), (17, 19)])
@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_layers_that_the_guard_keeps_float(kind, kept, autocast):
    keep = {str(index): kind for index in kept}
    same_bytes(quantized(layers(), scheme("int8"), keep=keep), autocast=autocast)


class Forks(nn.Module):
    """What a norm makes is read twice, and what a ReLU makes."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, 17, 3), nn.BatchNorm2d(17), nn.ReLU()
        self.convs = nn.ModuleList(nn.Conv2d(17, 17, 1) for _ in range(4))
        self.head = nn.Linear(17, 20)

    def forward(self, x):
        a, b, c, d = self.convs
        y = self.norm(self.stem(x))
        y = self.relu(a(y) + b(y))
        return self.head((c(y) + d(y)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_each_bf16_reader_of_a_float_output_keeps_its_own_copy(kind):
    keep = {name: kind for name, module in Forks().named_modules() if isinstance(module, nn.Conv2d)}
    same_bytes(quantized(Forks(), scheme("int8"), keep=keep), autocast=True)
    same_bytes(quantized(Forks(), scheme("int8"), keep=keep))
