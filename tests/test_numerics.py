"""What the same configuration computes, pinned: where it changes, `NUMERICS` is raised, and older results are stale.

Only what every processor gives alike is hashed: integers, orders of images, and float32 operations of one element each.
`python -m tests.test_numerics` prints the hashes.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from octo_exp.config.identity import NUMERICS
from octo_exp.data.sampler import EpochSampler, Stream, keyed_generator, stratified_indices
from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock, keyed_seed
from octo_exp.runs.lit import warmup_cosine
from tests.nn.helpers import scheme

GOLDEN = Path(__file__).parent / "golden" / "numerics.json"


def _tensors(*tensors: Tensor) -> bytes:
    return b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)


def _order() -> bytes:
    sampler = EpochSampler(size=50, batch_size=7, seed=3, shuffle=True, drop_last=False)
    sampler.set_epoch(2)
    labels = torch.arange(60) % 7
    drawn = stratified_indices(labels, 20, keyed_generator(Stream.VALIDATION_SPLIT, 1))
    return repr((list(sampler), drawn.tolist(), keyed_seed(0, "step", 5))).encode()


def _schedule() -> bytes:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, total_steps=20, warmup_fraction=0.2)
    # A cosine's last bit is the math library's.
    return repr([round(schedule.lr_lambdas[0](step), 9) for step in range(21)]).encode()


def _layer(name: str, impl: str = "reference") -> bytes:
    """A convolution's output, grad_input and grad_weight, over two steps: stored ranges take part in the second."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2))
    net[0].weight.data = torch.randint(-64, 65, (8, 3, 3, 3), generator=generator) / 128
    convert(net, scheme(name, g__rounding="stochastic"), impl=impl, clock=(clock := Clock(seed=5)))
    found = []
    for step in range(2):
        clock.step = step
        x = (torch.randint(-200, 201, (4, 3, 8, 8), generator=generator) / 256).requires_grad_()
        y = net(x)
        y.backward(torch.randint(-100, 101, y.shape, generator=generator) / 512)
        found += [y, x.grad, net[0].weight.grad]
    return _tensors(*found)


PARTS = {
    "order of images": _order,
    "learning rate": _schedule,
    "int8": lambda: _layer("int8"),
    "lac": lambda: _layer("lac"),
    "prc": lambda: _layer("prc"),
}


def hashes() -> dict[str, str]:
    return {name: hashlib.sha256(part()).hexdigest()[:16] for name, part in PARTS.items()}


def test_the_numbers_are_those_of_this_numerics():
    golden = json.loads(GOLDEN.read_text())
    assert golden["numerics"] == NUMERICS
    found = hashes()
    changed = [name for name in PARTS if found[name] != golden["hashes"].get(name)]
    assert not changed, (
        f"{', '.join(changed)}: the same configuration gives other numbers. If that is meant, raise "
        "octo_exp.config.identity.NUMERICS and write tests/golden/numerics.json anew (python -m tests.test_numerics)"
    )


def test_every_implementation_gives_them():
    assert _layer("int8", "torch") == _layer("int8")


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"numerics": NUMERICS, "hashes": hashes()}, indent=2) + "\n")
