"""How many files a reader opens to follow a tensor through one convolution, forward and backward."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import octo_exp
from octo_exp.nn.layers import QuantConv2d

PACKAGE = Path(octo_exp.__file__).parent
LAYER = {"nn/layers.py", "nn/three_gemms.py", "quant/quantizer.py", "quant/forms.py"}
KERNELS = {"kernels/int8.py", "kernels/cpu/backend.py", "kernels/cpu/conv.py", "kernels/cpu/loops.py"}
FORWARD = LAYER | KERNELS | {"quant/compensation.py"}
# The epilogue's mask, the clipped range of the gradient.
BACKWARD = LAYER | KERNELS | {"workload/epilogue.py", "quant/clipping.py"}


def files_of(call: Callable[[], Any]) -> tuple[Any, set[str]]:
    """(what the call returns, the files of the package whose functions it calls)."""
    seen: set[Path] = set()

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            seen.add(Path(frame.f_code.co_filename))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        result = call()
    finally:
        sys.setprofile(before)
    return result, {path.relative_to(PACKAGE).as_posix() for path in seen if PACKAGE in path.parents}


def test_a_tensor_passes_through_nine_files_forward_and_ten_backward():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1))
    octo_exp.quantize(net, "octo")
    layer, x = net[1], torch.rand(2, 4, 6, 6, requires_grad=True)
    assert isinstance(layer, QuantConv2d)
    assert layer.steps is not None
    layer(x).sum().backward()
    y, forward = files_of(lambda: layer(x))
    # The backward pass in this thread, which alone is watched.
    with torch.autograd.set_multithreading_enabled(False):
        _, backward = files_of(y.sum().backward)
    assert (forward, len(forward)) == (FORWARD, 9)
    assert (backward, len(backward)) == (BACKWARD, 10)
