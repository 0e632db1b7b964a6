"""Acceptance checks 8, 9, 13 and 15 on the released models: losses of first steps, what trains, integers, resume."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from octo_exp.graph.files.reader import read_model
from octo_exp.graph.files.writer import write_model
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.to_spec import spec_of
from octo_exp.graph.train.update.optimizers import make_integer
from octo_exp.graph.train.update.rule import UpdateRule
from tests.graph.update.helpers import golden_file, model_file
from tests.graph.update.test_configs import rule_of

pytestmark = pytest.mark.data
# The scheme of about 100 KB of each model with goldens.
PUBLISHED = {"mbv2-w0.35": "mbv2_w035_99kb", "mcunet-5fps": "mcunet_5fps_99kb"}


def started(model: str, rule: UpdateRule, *, head: str = "fp") -> McuNet:
    """The released net under a rule, its float head as in the goldens."""
    net = McuNet(read_model(model_file(model)), num_classes=10, head=head, mode="float_order")
    if head == "fp":
        golden = np.load(golden_file(f"{model}.npz"))
        net.head.linear.weight.data = torch.from_numpy(golden["head_weight"])
        net.head.linear.bias.data = torch.from_numpy(golden["head_bias"])
    rule.apply(net)
    return net


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = np.load(golden_file("inputs.npz"))
    return torch.from_numpy(inputs["S_normalized_f32"]), torch.from_numpy(inputs["labels"]).long()


class Steps:
    """Steps of one optimizer on the smooth batch."""

    def __init__(self, net: McuNet, rule: UpdateRule) -> None:
        self.net, (self.x, self.labels) = net, batch()
        self.optimizer = rule.build_optimizer(net, rule.parameter_groups(net))

    def __call__(self, number: int) -> list[float]:
        """Losses before each of `number` steps."""
        losses = []
        for _ in range(number):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.net(self.x), self.labels)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("optimizer", ["sgd_nomom", "sgd_scale_nomom", "sgd_scale"])
# Three steps of all layers: from the fourth on a diverging run (losses 2, 8, 16) turns on single roundings.
@pytest.mark.parametrize(("what", "steps"), [("sparse", 5), ("full", 3)])
def test_losses_of_the_first_steps(model, optimizer, what, steps):
    option = PUBLISHED[model] if what == "sparse" else "full"
    rule = rule_of(option, f"update.optimizer={optimizer}")
    losses = Steps(started(model, rule), rule)(steps)
    golden = np.load(golden_file(f"{model}.npz"))[f"traj_{optimizer}_{what}"]
    assert np.abs(np.array(losses) - golden[:steps]).max() <= 1e-3


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_first_step(model):
    rule = rule_of(PUBLISHED[model])
    net, golden = started(model, rule), np.load(golden_file(f"{model}.npz"))
    Steps(net, rule)(1)
    last = len(net.convs) - 1
    tensors = {
        f"step1_weight_{last - 5}": net.convs[last - 5].weight,
        f"step1_weight_{last - 2}": net.convs[last - 2].weight,
        "step1_bias_last": net.convs[last].bias,
        "step1_head_weight": net.head.linear.weight,
    }
    for name, tensor in tensors.items():
        expected = torch.from_numpy(golden[name])
        assert (tensor.detach() - expected).abs().max() <= 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize("model", PUBLISHED)
def test_which_gradients_there_are(model):
    rule = rule_of(PUBLISHED[model])
    net, golden = started(model, rule), np.load(golden_file(f"{model}.npz"))
    x, labels = batch()
    F.cross_entropy(net(x), labels).backward()
    assert [conv.weight.grad is not None for conv in net.convs] == golden["sparse_has_weight_grad"].tolist()
    assert [conv.bias.grad is not None for conv in net.convs] == golden["sparse_has_bias_grad"].tolist()
    for index in golden["sparse_manual_weight_idx"]:
        masked = torch.from_numpy(golden[f"sparse_mask_{index}"] == 0)
        gradient = net.convs[index].weight.grad[:, masked]
        assert torch.equal(gradient, torch.zeros_like(gradient))


def compared(losses: list[float], run: str) -> None:
    golden = np.load(golden_file("traj_mcunet_sparse_20steps.npz"))[run]
    assert np.abs(np.array(losses) - golden[: len(losses)]).max() <= 1e-3


@pytest.mark.parametrize("name", ["0.1", "0.01"])
def test_released_masters_give_the_published_losses(name):
    rule = rule_of("mcunet_5fps_99kb", f"update.lr={float(name) / 4}")
    compared(Steps(started("mcunet-5fps", rule), rule)(3), f"lr{name}_released")


def test_whole_weights_give_the_published_losses():
    # That run kept biases as floats.
    rule = rule_of("mcunet_5fps_99kb", "update.lr=0.0025")
    steps, losses = Steps(started("mcunet-5fps", rule), rule), []
    for _ in range(8):
        losses += steps(1)
        biases = [conv.bias.detach().clone() for conv in steps.net.convs]
        for conv, bias in zip(steps.net.convs, biases, strict=True):
            make_integer(conv)
            conv.bias.data.copy_(bias)
    compared(losses, "lr0.01_strict")


def test_strict_masters_are_whole_and_the_frozen_ones_as_imported():
    rule = rule_of("mcunet_5fps_99kb", "update.mode=strict_int8", "update.lr=0.0025")
    net = started("mcunet-5fps", rule)
    before, steps = copy.deepcopy(net.state_dict()), Steps(net, rule)
    for _ in range(3):
        steps(1)
        for conv in net.convs:
            assert torch.equal(conv.weight, conv.weight.round())
            assert conv.weight.abs().max() <= 127
            assert torch.equal(conv.bias, conv.bias.round())
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, before[name]), name
    assert any(not torch.equal(parameter, before[name]) for name, parameter in net.layers.named_parameters("layers"))


def test_strict_masters_survive_a_file(tmp_path):
    rule = rule_of("full", "update.mode=strict_int8", "update.lr=0.0025")
    net = started("mcunet-5fps", rule)
    steps = Steps(net, rule)
    steps(2)
    # The head's size does not matter: the file's layers are compared under this net's own head.
    exported = spec_of(net, logits_absmax=1.0)
    write_model(exported, tmp_path / "model.pkl")
    again = McuNet(read_model(tmp_path / "model.pkl"), num_classes=10, head="fp", mode="float_order")
    again.head.load_state_dict(net.head.state_dict())
    with torch.no_grad():
        logits = net(steps.x)
        assert torch.equal(again(steps.x), logits)
        assert not torch.equal(started("mcunet-5fps", rule)(steps.x), logits)


def test_a_quantised_head_is_not_counted():
    rule = rule_of("mcunet_5fps_99kb")
    net = started("mcunet-5fps", rule, head="quantized")
    assert len(net.convs) == 43
    assert [conv.bias.requires_grad for conv in net.convs] == [False] * 20 + [True] * 23
    assert rule.memory(net).kb == rule.memory(started("mcunet-5fps", rule)).kb == 99.84375


def test_resuming_gives_the_same_next_step():
    rule = rule_of("mcunet_5fps_99kb", "update.optimizer=sgd_scale", "update.lr=0.0025")
    whole = Steps(started("mcunet-5fps", rule), rule)
    whole(2)
    saved = copy.deepcopy((whole.net.state_dict(), whole.optimizer.state_dict()))
    whole(1)
    resumed = Steps(started("mcunet-5fps", rule), rule)
    resumed.net.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    resumed(1)
    for name, parameter in whole.net.named_parameters():
        assert torch.equal(parameter, resumed.net.get_parameter(name)), name
