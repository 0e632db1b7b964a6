"""Which input channels are kept: by exact norms of the int8 weights, or by a keyed draw."""

import numpy as np
import pytest
import torch

from octo_exp.graph.files.reader import read_model
from octo_exp.graph.train.update.channels import channel_norms, kept_channels
from tests.graph.update.helpers import golden_file, model_file

SIZES = [1, 7, 16, 63, 65]


def weights(channels: int, *, depthwise: bool) -> torch.Tensor:
    shape = (channels, 1, 3, 3) if depthwise else (5, channels, 3, 3)
    return torch.randint(-127, 128, shape).float()


@pytest.mark.parametrize("channels", SIZES)
@pytest.mark.parametrize("depthwise", [False, True])
def test_norms_are_exact(channels, depthwise):
    weight = weights(channels, depthwise=depthwise)
    rows = weight.numpy().astype(object) if depthwise else weight.numpy().astype(object).transpose(1, 0, 2, 3)
    expected = torch.tensor([int((row**2).sum()) for row in rows])
    assert torch.equal(channel_norms(weight, depthwise=depthwise), expected)


@pytest.mark.parametrize("channels", SIZES)
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("criteria", ["magnitude+", "magnitude-"])
def test_magnitude_keeps_the_extreme_channels(channels, depthwise, criteria):
    weight, sign = weights(channels, depthwise=depthwise), -1 if criteria == "magnitude+" else 1
    norms = channel_norms(weight, depthwise=depthwise).tolist()
    for kept in {1, channels // 2, channels}:
        chosen = kept_channels(weight, kept, depthwise=depthwise, criteria=criteria, key="0/0")
        # Python's sort is stable: of equal norms the first.
        expected = sorted(sorted(range(channels), key=lambda c: sign * norms[c])[:kept])
        assert torch.equal(chosen, torch.tensor(expected, dtype=torch.int64))


@pytest.mark.parametrize("criteria", ["magnitude+", "magnitude-"])
def test_of_equal_norms_the_first_are_kept(criteria):
    chosen = kept_channels(torch.ones(4, 65, 1, 1), 7, depthwise=False, criteria=criteria, key="0/0")
    assert torch.equal(chosen, torch.arange(7))


def test_a_random_choice_depends_on_its_key_alone():
    def chosen(key: str) -> list[int]:
        return kept_channels(weights(63, depthwise=False), 16, depthwise=False, criteria="random", key=key).tolist()

    first = chosen("0/21")
    assert first == chosen("0/21") == sorted(set(first))
    assert len(first) == 16
    assert len({tuple(first), tuple(chosen("1/21")), tuple(chosen("0/24"))}) == 3


@pytest.mark.data
@pytest.mark.parametrize("model", ["mbv2-w0.35", "mcunet-5fps"])
def test_the_published_masks(model):
    golden, convs = np.load(golden_file(f"{model}.npz")), read_model(model_file(model)).convs
    checked = 0
    for index, ratio in zip(golden["sparse_manual_weight_idx"], golden["sparse_ratio"], strict=True):
        conv, mask = convs[index], torch.from_numpy(golden[f"sparse_mask_{index}"]).bool()
        kept = kept_channels(
            torch.from_numpy(conv.weight).float(),
            int(conv.in_channels * ratio),
            depthwise=conv.depthwise,
            criteria="magnitude+",
            key="",
        )
        assert torch.equal(kept, mask.nonzero().flatten())
        checked += len(kept) < conv.in_channels
    assert checked == 2
