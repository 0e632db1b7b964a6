"""Under bf16 autocast float layers multiply in bf16; quantised layers choose for themselves."""

import pytest
from torch import nn

from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import scheme
from tests.tracing.helpers import lenet5, traced


def widths(workload):
    return {(gemm.layer, gemm.role): (gemm.bits_a, gemm.bits_b) for gemm in workload.gemms}


def sizes(workload):
    return [(g.layer, g.role, g.m, g.n, g.k, g.count, g.elements_a, g.elements_b) for g in workload.gemms]


def test_float_layers_multiply_in_bf16():
    plain, autocast = (traced(lenet5(), (1, 32, 32), batch_size=4, autocast=on) for on in (False, True))
    assert set(widths(plain).values()) == {(32, 32)}
    assert set(widths(autocast).values()) == {(16, 16)}
    assert {gemm.width for gemm in autocast.gemms} == {"bf16"}
    assert sizes(autocast) == sizes(plain)


@pytest.mark.parametrize("norm", [True, False])
def test_int8_layers_stay_int8(norm):
    def net():
        layers = [nn.Conv2d(3, 4, 3), *[nn.BatchNorm2d(4)] * norm, nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten()]
        converted = nn.Sequential(*layers, nn.Linear(24, 5), nn.Linear(5, 2))
        convert(converted, scheme("int8", skip="[first,last]", grad_weight="bf16"), impl="torch", clock=Clock())
        return converted

    plain, autocast = (traced(net(), (3, 6, 6), autocast=on) for on in (False, True))
    first, last = "0", list(plain.gemms)[-1].layer
    for key, bits in widths(plain).items():
        kept = (16, 16) if key[1] == "grad_weight" else (8, 8)
        assert bits == ((32, 32) if key[0] in (first, last) else kept)
        assert widths(autocast)[key] == ((16, 16) if key[0] in (first, last) else kept)
    assert sizes(autocast) == sizes(plain)


def test_operands_are_cast_once_a_call():
    net = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    found = [w for w in traced(net, (7,), autocast=True).vector if (w.role, w.kind) == ("output", "elementwise")]
    # The bias of 5 and 3 outputs, the casts of two inputs and both weights; the second input is bf16 already.
    assert [(w.layer, w.operations) for w in found] == [("0", 2 * 5 + 2 * 7 + 35), ("1", 2 * 3 + 15)]
    assert [(w.bytes_read, w.bytes_written) for w in found] == [(4 * (14 + 35), 2 * (14 + 35)), (4 * 15, 2 * 15)]


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(input=x)


def test_a_layer_called_by_the_name_of_its_argument():
    assert sizes(traced(Named(), (4,), autocast=True)) == sizes(traced(Named(), (4,)))
