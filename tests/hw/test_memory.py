from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.hw import step_memory
from octo_exp.workload import BUFFER_KINDS, Buffer


def buffer(first, last, size=1, *, layer="conv", kind="activation", kept=False):
    return Buffer(layer=layer, kind=kind, bytes=size, first=first, last=last, kept=kept)


@st.composite
def any_buffer(draw):
    first = draw(st.integers(0, 12))
    return buffer(
        first,
        first + draw(st.integers(0, 12)),
        draw(st.sampled_from([1, 7, 16, 63, 65]) | st.integers(0, 2**40)),
        layer=draw(st.sampled_from(["conv", "fc", "norm"])),
        kind=draw(st.sampled_from(BUFFER_KINDS)),
        kept=draw(st.booleans()),
    )


@given(buffers=st.lists(any_buffer(), max_size=30))
def test_a_loop_over_the_events_finds_the_same_peak(buffers):
    report = step_memory(buffers)
    events = range(max((item.last for item in buffers), default=0) + 1)
    alive = [[item for item in buffers if item.first <= event <= item.last] for event in events]
    live = [sum(item.bytes for item in items) for items in alive]
    peak = live.index(max(live))
    curves = {
        kind: tuple(sum(item.bytes for item in items if item.kind == kind) for items in alive) for kind in BUFFER_KINDS
    }
    kept = Counter()
    for item in buffers:
        kept[item.layer] += item.bytes * item.kept
    assert report.live_bytes == tuple(live)
    assert (report.event, report.peak_bytes) == (peak, live[peak])
    assert report.live_by_kind == curves
    assert report.peak_by_kind == {kind: curve[peak] for kind, curve in curves.items()}
    assert report.kept_bytes == kept.total() == sum(report.kept_by_layer.values())
    assert set(report.kept_by_layer) == {item.layer for item in buffers if item.kept}
    assert all(kept[layer] == size for layer, size in report.kept_by_layer.items())


def test_a_step_by_hand():
    report = step_memory(
        [
            buffer(0, 5, 100, kind="weight"),
            buffer(0, 4, 7, kept=True),
            buffer(1, 3, 16, layer="fc", kept=True),
            buffer(2, 2, 63, layer="fc", kind="gradient"),
            buffer(3, 5, 63, kind="gradient"),
            buffer(4, 4, 16, kind="workspace"),
        ]
    )
    assert report.live_bytes == (107, 123, 186, 186, 186, 163)
    # The first of equals; what ends at an event is still there, what begins at it already is.
    assert (report.event, report.peak_bytes) == (2, 186)
    none = dict.fromkeys(BUFFER_KINDS, 0)
    assert report.peak_by_kind == none | {"weight": 100, "activation": 23, "gradient": 63}
    assert (report.kept_bytes, report.kept_by_layer) == (23, {"conv": 7, "fc": 16})


def test_no_buffers_are_no_memory():
    report = step_memory([])
    assert (report.peak_bytes, report.event, report.kept_bytes, report.kept_by_layer) == (0, 0, 0, {})
    assert report.live_bytes == (0,)
    assert report.peak_by_kind == dict.fromkeys(BUFFER_KINDS, 0)
    assert report.live_by_kind == dict.fromkeys(BUFFER_KINDS, (0,))


@pytest.mark.parametrize(
    ("first", "last", "kind", "message"),
    [
        (3, 2, "weight", "layer 'conv': a buffer must not end before it begins: 3..2"),
        (-1, 2, "weight", "layer 'conv': a buffer must not end before it begins: -1..2"),
        (0, 0, "cache", "layer 'conv': kind must be one of weight, activation,"),
    ],
)
def test_a_buffer_that_cannot_be_is_refused(first, last, kind, message):
    with pytest.raises(UserError, match=message):
        buffer(first, last, kind=kind)
