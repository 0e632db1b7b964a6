import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from octo_exp.errors import UserError
from tests.nn.helpers import CONF

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def model(name: str, *overrides: str, channels: int = 3, classes: int = 10) -> nn.Module:
    settings = [f"+model={name}", f"+data.channels={channels}", f"+data.classes={classes}"]
    settings += [f"model.{o}" for o in overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(overrides=settings).model, _convert_="all")


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_norm_is_a_config_value_of_each_model(name, norm):
    net = model(name, f"norm={norm}", channels=1, classes=7)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert bool(norms) == (norm == "batch")
    size = 32 if name not in ("simplecnn", "vgg11_octo") else 28
    assert net(torch.rand(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_norm_is_refused(name):
    with pytest.raises(Exception, match=r"model\.norm='layer'") as caught:
        model(name, "norm=layer")
    assert isinstance(caught.value.__cause__, UserError)


def test_parameter_counts_of_the_specification():
    assert count(model("simplecnn", channels=1)) == 433_890
    assert count(model("alexnet")) == 35_855_178
    octo = model("vgg11_octo", channels=1)
    linears = [m for m in octo.modules() if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linears] == [2048, 4096, 1000]
    octo = model("vgg11_octo", "image_size=32")
    assert next(m for m in octo.modules() if isinstance(m, nn.Linear)).in_features == 8192
    # He et al. 2016, table 6: ResNet-20 has 0.27 M parameters.
    assert round(count(model("resnet20")) / 1e6, 2) == 0.27
    vgg = model("vgg11")
    assert [m.in_features for m in vgg.modules() if isinstance(m, nn.Linear)] == [512, 512, 512]
    assert sum(isinstance(m, nn.MaxPool2d) for m in vgg.modules()) == 5


@pytest.mark.parametrize("name", MODELS)
def test_he_initialization_keeps_the_signal(name):
    net = model(name, "norm=none").eval()
    size = 28 if name in ("simplecnn", "vgg11_octo") else 32
    with torch.no_grad():
        logits = net(torch.randn(64, 3, size, size))
    assert 0.1 < logits.std() < 10


def test_images_too_small_and_bad_stages_are_refused():
    for overrides in (["image_size=8"], ["stages=[64,pol]"], ["stages=[pool]"]):
        with pytest.raises(Exception, match=r"model\.(image_size|stages)") as caught:
            model("vgg11", *overrides)
        assert isinstance(caught.value.__cause__, UserError)
