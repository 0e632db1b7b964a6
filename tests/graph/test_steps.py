"""What a step reads anew: scales, zero points, weights and updates may be written between two steps, by any means."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.train import chains, cpu_forward
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.trained import NOTHING, Update
from tests.graph.helpers import MODES, conv_case, tiny_model
from tests.graph.test_graph import gradients


def net_of(seed: int = 0, mode: str = "integer") -> McuNet:
    torch.manual_seed(0)
    return McuNet(tiny_model(seed), num_classes=5, head="fp", mode=mode)


def images(n: int = 3) -> Tensor:
    return torch.randint(-128, 128, (n, 3, 16, 16)).float()


def _load(net: McuNet, other: McuNet) -> None:
    net.load_state_dict(other.state_dict())


def _assign(net: McuNet, other: McuNet) -> None:
    net.load_state_dict(other.state_dict(), assign=True)


def _set_data(net: McuNet, other: McuNet) -> None:
    for t, value in zip(_tensors(net), _tensors(other), strict=True):
        t.data = value.data.clone()


def _write_data(net: McuNet, other: McuNet) -> None:
    # No version of a tensor tells of these writes.
    for t, value in zip(_tensors(net), _tensors(other), strict=True):
        t.data.copy_(value)


def _write_numpy(net: McuNet, other: McuNet) -> None:
    for t, value in zip(_tensors(net), _tensors(other), strict=True):
        t.detach().numpy()[...] = value.detach().numpy()


def _tensors(net: McuNet) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


WRITES = {f.__name__[1:]: f for f in (_load, _assign, _set_data, _write_data, _write_numpy)}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_step_sees_what_was_written_since_the_last_one(write: Callable[[McuNet, McuNet], None], frozen: bool):
    net, other, x = net_of(), net_of(7), images()
    if frozen:
        for conv in (*net.convs, *other.convs):
            conv.update = NOTHING
    # What follows must not be what these steps computed from.
    stale = net(x)
    gradients(net, x)
    write(net, other)
    assert torch.equal(net(x), other(x))
    assert not torch.equal(net(x), stale)
    want = gradients(other, x)
    for name, g in gradients(net, x).items():
        assert (g is None) == (want[name] is None), name
        assert g is None or torch.equal(g, want[name]), name


def test_a_copy_and_its_original_go_their_own_ways():
    net, x = net_of(), images()
    before = net(x)
    twin = copy.deepcopy(net)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    with torch.no_grad():
        for conv in net.convs:
            conv.weight.neg_()
    buffer.seek(0)
    assert torch.equal(twin(x), before)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), before)
    assert not torch.equal(net(x), before)


@pytest.mark.parametrize("mode", MODES)
def test_a_weight_trained_or_frozen_between_two_steps(mode):
    net, x = net_of(mode=mode), images()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for update in (Update(), NOTHING, Update()):
        for conv in net.convs:
            conv.update = update
        gradients(net, x)
        assert all((conv.weight.grad is None) == (update is NOTHING) for conv in net.convs)
        optimizer.step()
    fresh = net_of(mode=mode)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(net(x), fresh(x))


class _Elsewhere:
    """Kept channels that have stayed on another device than the net."""

    def __init__(self, kept: Tensor) -> None:
        self.kept, self.seen = kept, []

    def to(self, device: torch.device) -> Tensor:
        self.seen.append(device)
        return self.kept


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 7])
def test_kept_channels_follow_the_weight_to_its_device(mode, groups):
    case = conv_case(3, n=2, channels=(7, 7), groups=groups, kernel=3, stride=1, size=(5, 5))
    kept, got = torch.tensor([4, 1]), []
    elsewhere = _Elsewhere(kept)
    for index in (kept, elsewhere):
        weight = case.w.clone().requires_grad_()
        step = chains.Conv(weight=weight, bias=case.b, constants=case.constants, update=Update(kept=index))
        chains.run_chain(case.x, [step], mode=mode).backward(case.g)
        got.append(weight.grad)
    assert elsewhere.seen == [case.w.device]
    assert torch.equal(*got)


@pytest.mark.parametrize("value", [127.5, -128.6, 300.0])
@pytest.mark.parametrize("channels", [1, 7, 16, 63, 65])
def test_one_weight_beyond_int8_takes_the_way_of_two_digits(channels, value):
    """127.5 rounds to 128; the last weight of the last channel is the one."""
    shape = {"channels": (channels,) * 2, "groups": channels, "kernel": 3, "stride": 1, "size": (5, 6)}
    case = conv_case(1, n=2, **shape)
    case.w[-1, -1, -1, -1] = value
    outputs = [chains.arithmetic_of(mode, "cpu") for mode in MODES]
    y, z = (m.leave(m.forward(m.enter(case.x), case.w, case.b, case.constants, want_bits=False)[0]) for m in outputs)
    assert torch.equal(y, z)


@pytest.mark.parametrize("value", [1e6, -1e6, float("nan"), float("inf")])
def test_a_diverged_filter_is_refused(value):
    case = conv_case(9, n=1, channels=(7, 7), groups=7, kernel=3, stride=1, size=(5, 5))
    case.w[-1, 0, -1, -1] = value
    with pytest.raises(UserError, match="diverged"):
        cpu_forward.forward(cpu_forward.enter(case.x), case.w, case.b, case.constants, want_bits=False)


@pytest.mark.parametrize("value", [127.49, -128.5, -128.0])
def test_the_last_codes_are_still_codes(value):
    case = conv_case(1, n=2, channels=(7, 7), groups=7, kernel=3, stride=1, size=(5, 6))
    case.w[3, 0, 1, 1] = value
    out = []
    for weight in (case.w, case.w.round()):
        y, _ = cpu_forward.forward(cpu_forward.enter(case.x), weight, case.b, case.constants, want_bits=False)
        out.append(y)
    assert torch.equal(*out)


@pytest.mark.parametrize(("groups", "kernel"), [(1, 1), (16, 1), (16, 3)])
def test_gradients_lie_as_their_parameters_do(groups, kernel):
    """Autograd copies a gradient that lies otherwise."""
    case = conv_case(2, n=1, channels=(16, 16), groups=groups, kernel=kernel, stride=1, size=(7, 7))
    weight = case.w.clone().requires_grad_()
    step = chains.Conv(weight=weight, bias=case.b, constants=case.constants, update=Update())
    y = chains.run_chain(case.x, [step], mode="integer")
    (g,) = torch.autograd.grad(y, weight, case.g)
    assert g.is_contiguous()


@pytest.mark.parametrize("n", [1, 2])
def test_what_passes_is_channels_last(n):
    """Of one image as of many, of one channel as of many: the strides are what views are made by."""
    for channels, side in ((1, 7), (16, 1), (65, 7)):
        x = torch.randint(-128, 128, (n, channels, side, side)).float()
        codes = cpu_forward.enter(x)
        like = torch.empty(x.shape, dtype=torch.int8, memory_format=torch.channels_last)
        assert codes.stride() == like.stride()
        assert torch.equal(codes.float(), x)


def test_a_step_of_a_frozen_net_trains_the_head():
    net = net_of()
    for conv in net.convs:
        conv.update = NOTHING
    before = {name: t.clone() for name, t in net.state_dict().items()}
    x, labels = images(), torch.arange(3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    changed = {name for name, t in net.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"head.linear.weight", "head.linear.bias"}
