import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.models.mobilenet_v2 import InvertedBottleneck, scaled_channels
from tests.configs import compose_copy
from tests.graph.calibrate.helpers import MODELS


def model(name: str, *overrides: str, channels: int = 3, classes: int = 10) -> nn.Module:
    settings = [f"+model={name}", f"+data.channels={channels}", f"+data.classes={classes}"]
    settings += [f"model.{o}" for o in overrides]
    return instantiate(compose_copy(None, *settings).model, _convert_="all")


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_norm_is_a_config_value_of_each_model(name, norm):
    net = model(name, f"norm={norm}", channels=1, classes=7)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert bool(norms) == (norm == "batch")
    _, size, _ = MODELS[name]
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


def test_the_28_pixel_alexnet_is_the_demos():
    net = model("alexnet_octo", channels=1)
    convs = [(m.out_channels, m.kernel_size[0], m.padding[0]) for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [(96, 11, 1), (256, 5, 1), (384, 3, 1), (384, 3, 1), (256, 3, 1)]
    linears = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
    assert linears == [(1024, 4096), (4096, 4096), (4096, 10)]
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert sum(isinstance(m, nn.MaxPool2d) for m in net.modules()) == 3


@pytest.mark.parametrize("stage", ["[96]", "[96,0]", "[96,x]", "0", "pol", "[[96,11],[3]]"])
def test_a_stage_that_is_none_is_refused(stage):
    with pytest.raises(Exception, match=r"model\.stages holds") as caught:
        model("alexnet_octo", f"stages=[64,{stage}]")
    assert isinstance(caught.value.__cause__, UserError)


def test_pools_and_activations_of_lenet5_are_config_values():
    net = model("lenet5", "pool=average", "relu=[c1,c3]", channels=1)
    kinds = [type(m).__name__ for m in [*net.features, *net.classifier]]
    assert kinds == ["Conv2d", "ReLU", "AvgPool2d", "Conv2d", "ReLU", "AvgPool2d", "Conv2d", "Linear", "Linear"]
    net = model("lenet5")
    kinds = [type(m).__name__ for m in [*net.features, *net.classifier]]
    assert kinds.count("ReLU") == 4
    assert kinds.count("MaxPool2d") == 2


@pytest.mark.parametrize("setting", ["relu=[c1,c2]", "relu=c1", "pool=mean", "pool=null"])
def test_an_unknown_pool_or_activation_of_lenet5_is_refused(setting):
    with pytest.raises(Exception, match=r"model\.(relu|pool)") as caught:
        model("lenet5", setting)
    assert isinstance(caught.value.__cause__, UserError)


def test_parameter_counts_of_the_papers():
    # Sandler et al. 2018: 3.4 M in table 4, by the same layout; He et al. 2016: ResNet-18 of table 1.
    large = ("strides=[2,1,2,2,2,1,2,1]", "image_size=224")
    assert count(model("mobilenet_v2", "width=1.0", *large, classes=1000)) == 3_504_872
    assert count(model("mobilenet_v2", *large, classes=1000)) == 1_677_128
    assert count(model("resnet18", "stem=large", "image_size=224", classes=1000)) == 11_689_512


@pytest.mark.parametrize(
    ("name", "settings", "size", "side"),
    [
        ("mobilenet_v2", ["strides=[2,1,2,2,2,1,2,1]", "image_size=63"], 63, 2),
        ("mobilenet_v2", ["width=0.1"], 32, 4),
        ("mobilenet_v2", ["strides=[1,1,1,1,1,1,1,1]", "image_size=7"], 7, 7),
        ("resnet18", ["stem=large", "widths=[4,8,16,24]", "image_size=65"], 65, 3),
        ("resnet18", ["widths=[4,8]", "blocks=[1,1]"], 32, 16),
    ],
)
def test_sides_of_the_last_image(name, settings, size, side):
    net = model(name, *settings)
    images = torch.rand(2, 3, size, size)
    assert net.features[:-1](images).shape[2:] == (side, side)
    assert net(images).shape == (2, 10)


def test_channels_are_multiples_of_8_and_never_below_nine_tenths():
    for width in (0.1, 0.35, 0.5, 0.75, 1.0, 1.4):
        for channels in (16, 24, 32, 64, 96, 160, 320, 1280):
            scaled = scaled_channels(channels, width)
            assert scaled % 8 == 0
            assert scaled >= max(8, 0.9 * channels * width)
            assert scaled <= max(8, channels * width + 8)
    # 24 * 0.75 = 18 is nearest to 16, which is below 0.9 * 18.
    assert [scaled_channels(c, 0.75) for c in (16, 24, 32)] == [16, 24, 24]
    net = model("mobilenet_v2")
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)][-1] == 1280


def test_the_relus_of_a_bottleneck():
    net = model("mobilenet_v2")
    assert sum(isinstance(m, nn.ReLU6) for m in net.modules()) == 35
    assert not [m for m in net.modules() if isinstance(m, nn.ReLU)]


def test_strides_and_additions_of_the_bottlenecks():
    net = model("mobilenet_v2", "strides=[2,1,2,2,2,1,2,1]", "image_size=64")
    blocks = [m for m in net.modules() if isinstance(m, InvertedBottleneck)]
    # Table 2: 1, 2, 3, 4, 3, 3, 1 blocks a stage, of which the first has the stride.
    depthwise = [m for b in blocks for m in b.body if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [m.stride[0] for m in depthwise] == [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    assert [b.adds for b in blocks] == [bool(int(c)) for c in "00101101110110110"]
    x = torch.randn(2, 8, 5, 5)
    added = blocks[2].eval()
    assert torch.equal(added(x), x + added.body(x))


def test_without_norms_activations_stay_below_their_ceiling():
    """Linear ends of half the variance: else a quarter of the last activations is 6."""
    shares = []
    net = model("mobilenet_v2", "norm=none").eval()
    for module in net.modules():
        if isinstance(module, nn.ReLU6):
            module.register_forward_hook(lambda m, x, y: shares.append(float((y == 6).float().mean())))
    with torch.no_grad():
        net(torch.randn(8, 3, 32, 32))
    assert len(shares) == 35
    assert max(shares) < 0.1


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("mobilenet_v2", "width=0"),
        ("mobilenet_v2", "strides=[1,1]"),
        ("mobilenet_v2", "strides=[1,1,1,2,2,1,3,1]"),
        ("mobilenet_v2", "image_size=7"),
        ("resnet18", "stem=medium"),
        ("resnet18", "widths=[64,128]"),
        ("resnet18", "blocks=[2,2,0,2]"),
        ("resnet18", "image_size=7"),
    ],
)
def test_bad_values_are_refused_by_their_key(name, setting):
    key = setting.partition("=")[0]
    with pytest.raises(Exception, match=rf"model\.{key}=") as caught:
        model(name, setting)
    assert isinstance(caught.value.__cause__, UserError)


@pytest.mark.parametrize("name", MODELS)
def test_he_initialization_keeps_the_signal(name):
    net = model(name, "norm=none").eval()
    _, size, _ = MODELS[name]
    with torch.no_grad():
        logits = net(torch.randn(64, 3, size, size))
    assert 0.1 < logits.std() < 10


def test_images_too_small_and_bad_stages_are_refused():
    for overrides in (["image_size=8"], ["stages=[64,pol]"], ["stages=[pool]"]):
        with pytest.raises(Exception, match=r"model\.(image_size|stages)") as caught:
            model("vgg11", *overrides)
        assert isinstance(caught.value.__cause__, UserError)
