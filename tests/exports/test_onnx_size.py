"""What an ONNX file weighs beside the float32 file that torch's own exporter writes of the same network."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from octo_exp.exports.onnx import model
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.operations import steps_of
from octo_exp.graph.spec import BlockSpec, ConvSpec, Layer, ModelSpec, PoolSpec
from tests.graph.helpers import model_file

pytestmark = pytest.mark.data


def with_classes(spec: ModelSpec, classes: int) -> ModelSpec:
    last = spec.classifier
    arrays = {name: getattr(last, name)[:classes] for name in ("weight", "bias", "w_scales")}
    return replace(spec, classifier=replace(last, out_channels=classes, **arrays))


def conv(spec: ConvSpec) -> nn.Module:
    shape = (spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, spec.padding)
    made = nn.Conv2d(*shape, groups=spec.groups)
    # Nothing below 0 is what a ReLU6 leaves.
    return nn.Sequential(made, nn.ReLU6()) if spec.y_zero == -128 else made


class Block(nn.Module):
    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.body = nn.Sequential(*map(conv, spec.body))
        self.shortcut = nn.Sequential(*map(conv, spec.shortcut))
        self.adds = spec.residual is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.body(x)
        return made + self.shortcut(x) if self.adds else made


def float_layer(spec: Layer) -> nn.Module:
    if isinstance(spec, PoolSpec):
        assert spec.kind == "average"
        return nn.AvgPool2d(spec.kernel)
    return Block(spec) if isinstance(spec, BlockSpec) else conv(spec)


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("name", ["mbv2-w0.35", "mcunet-5fps", "proxyless-w0.3"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_three_tenths_of_torchs_float_file(name, classes, tmp_path):
    spec = with_classes(read_model(model_file(name)), classes)
    net = nn.Sequential(*map(float_layer, spec.layers), conv(spec.classifier)).eval()
    assert sum(p.numel() for p in net.parameters()) == sum(step.params for step in steps_of(spec))
    x = torch.zeros(1, 3, spec.image.size, spec.image.size)
    # The smaller of the two that torch has: the other notes where each node comes from.
    torch.onnx.export(net, (x,), tmp_path / "float.onnx", dynamo=False)
    ours = len(model.build(spec).SerializeToString())
    assert ours <= 0.3 * (tmp_path / "float.onnx").stat().st_size
