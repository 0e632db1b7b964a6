from dataclasses import fields

import pytest

from octo_exp.base.errors import UserError
from octo_exp.hw import gemm_arrays
from octo_exp.workload import ROLES, Buffer, VectorWork
from tests.hw.helpers import gemm, workload


def work(layer, **change):
    given = {"role": "output", "kind": "norm", "operations": 7, "bytes_read": 16, "bytes_written": 1}
    return VectorWork(layer=layer, **given | change)


def test_workloads_add_in_order():
    first = workload(gemm(layer="a"), vector=(work("a"),))
    second = workload(gemm(layer="b"), gemm(layer="b", role="grad_weight"), vector=(work("b"),))
    both = first + second
    assert [item.layer for item in both.gemms] == ["a", "b", "b"]
    assert [item.layer for item in both.vector] == ["a", "b"]
    assert both.macs == first.macs + second.macs == 3 * 100 * 16 * 150
    assert [len(both.of_role(role)) for role in ROLES] == [2, 0, 1]


@pytest.mark.parametrize("change", [{"batch_size": 8}, {"grad_input_form": "im2col"}])
def test_unlike_workloads_do_not_add(change):
    with pytest.raises(UserError, match=next(iter(change))):
        workload(gemm()) + workload(gemm(), **change)


def test_workloads_with_buffers_do_not_add():
    held = workload(buffers=(Buffer(layer="a", kind="weight", bytes=1, first=0, last=1),))
    for one, other in ((held, workload()), (workload(), held)):
        with pytest.raises(UserError, match="buffers cannot be added"):
            one + other


@pytest.mark.parametrize(
    ("bits", "width"),
    [((1, 8), "int8"), ((8, 9), "bf16"), ((16, 4), "bf16"), ((17, 8), "fp32"), ((8, 32), "fp32")],
)
def test_the_wider_operand_names_the_arithmetic(bits, width):
    assert gemm(bits_a=bits[0], bits_b=bits[1]).width == width


def test_columns_hold_every_gemm():
    first = gemm(7, 63, 65, count=3, bits_a=4, bits_b=9, elements_a=11)
    columns = gemm_arrays(workload(first, gemm(1, 2, 3, bits_out=17, elements_out=1)))
    found = {item.name: getattr(columns, item.name).tolist() for item in fields(columns)}
    assert found == {
        "m": [7, 1],
        "n": [63, 2],
        "k": [65, 3],
        "count": [3, 1],
        "elements_a": [11, 3],
        "elements_b": [65 * 63, 6],
        "elements_out": [7 * 63, 1],
        "bytes_a": [1, 1],
        "bytes_b": [2, 1],
        "bytes_out": [4, 3],
        "width": [1, 0],
    }
    assert columns.macs.tolist() == [3 * 7 * 63 * 65, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "forward"}, "role must be one of output, grad_input, grad_weight"),
        ({"m": 0}, "layer 'conv': m .* got 0"),
        ({"count": 1.5}, "count .* got 1.5"),
        ({"bits_a": -8}, "bits_a must be"),
        ({"bits_out": 0}, "bits_out must be"),
        ({"elements_a": 0}, "elements_a must be"),
        ({"elements_b": 2.0}, "elements_b must be"),
        ({"elements_out": 0}, "elements_out must be"),
    ],
)
def test_bad_gemm_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        gemm(**change)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"grad_input_form": "direct"}])
def test_bad_workload_is_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        workload(gemm(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "conv"}, "layer 'a': kind must be one of quantize, rescale,"),
        ({"role": "forward"}, "layer 'a': role .* output,"),
    ],
)
def test_bad_vector_work_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        work("a", **change)
