import gc
import mmap
from types import SimpleNamespace

import torch
from torch import nn

from octo_exp.runs.callbacks.kept_memory import MemoryCallback, SavedTensors, peak_mib, reset_peak


def test_saved_bytes_are_counted_once_and_to_the_module_that_saved_them():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    with SavedTensors(net) as counter:
        loss = net(x).square().sum()
    # Linear saves its input (5*4 floats); ReLU its result (5*8), which the next Linear's input shares; the square saves
    # the net's output (5*2). Weights count nothing.
    assert counter.bytes_by_layer == {"0": 5 * 4 * 4, "1": 5 * 8 * 4, "(loss)": 5 * 2 * 4}
    loss.backward()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_nested_modules_take_their_own_share():
    inner = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
    net = nn.ModuleDict({"body": inner})
    net.forward = lambda t: inner(t) * 2
    with SavedTensors(net) as counter:
        net.forward(torch.randn(3, 4)).sum()
    assert counter.bytes_by_layer == {"body.0": 48, "body.1": 48}


def test_the_second_batch_is_measured_up_to_its_backward_pass(tmp_path):
    net, callback = nn.Linear(4, 8), MemoryCallback()
    trainer = SimpleNamespace(num_training_batches=3, default_root_dir=str(tmp_path))
    for batch, rows in enumerate((5, 7, 9)):
        callback.on_train_batch_start(trainer, SimpleNamespace(net=net), None, batch)
        loss = net(torch.randn(rows, 4)).sum()
        callback.on_before_backward(trainer, None, loss)
        net(torch.randn(100, 4)).sum().backward()
    assert callback.saved == {"(net)": 7 * 4 * 4}
    assert (tmp_path / "memory.csv").read_text().splitlines()[1:] == ["(net),112"]
    assert not net._forward_hooks


def test_a_step_that_breaks_off_leaves_nothing_behind(tmp_path):
    net, callback = nn.Linear(4, 8), MemoryCallback()
    trainer = SimpleNamespace(num_training_batches=3, default_root_dir=str(tmp_path))
    callback.on_train_batch_start(trainer, SimpleNamespace(net=net), None, 0)
    assert callback._context is None
    callback.on_train_batch_start(trainer, SimpleNamespace(net=net), None, 1)
    counter = callback._context
    callback.on_exception(trainer, None, RuntimeError())
    net(torch.randn(5, 4)).square().sum()
    assert not counter.bytes_by_layer
    assert not net._forward_hooks


def test_the_peak_starts_anew_with_each_run():
    # Pages of the system's own: an allocator may keep what it was given back.
    size = 64 * 2**20
    reset_peak()
    with mmap.mmap(-1, size) as block:
        block.write(b"1" * size)
        high = peak_mib()
    gc.collect()
    reset_peak()
    assert peak_mib() <= high - 50
