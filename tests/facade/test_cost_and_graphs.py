"""`price`, `calibrate` and the graph files from the door."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

import octo_exp
from octo_exp.base.errors import ConfigError, UserError
from octo_exp.hw import training_step_cost
from octo_exp.tracing import optimizer_cost, trace
from tests.configs import composed


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten()),
        nn.Linear(6 * 3 * 3, 4),
    )


@pytest.mark.parametrize("scheme", [None, "int8"])
def test_a_price_is_that_of_a_run(scheme: str | None) -> None:
    net = made() if scheme is None else octo_exp.quantize(made(), scheme)
    adam = torch.optim.Adam(net.parameters())
    found = octo_exp.price(net, (1, 12, 12), batch_size=8, hw="systolic_16x16", energy="jouppi_7nm", optimizer=adam)
    cfg = composed("hw=[systolic_16x16]", "energy=jouppi_7nm")
    cost = cfg.callbacks.cost
    form = cost.grad_input_form
    workload = trace(net, (1, 12, 12), batch_size=8, grad_input_form=form, optimizer=optimizer_cost(adam))
    profile, table = instantiate(cfg.hw.systolic_16x16, _convert_="all"), instantiate(cfg.energy, _convert_="all")
    expected = training_step_cost(workload, profile, convention=cost.convention, energy=table)
    assert found == expected
    assert octo_exp.price(net, (1, 12, 12), batch_size=8, hw=profile, energy=table, optimizer=adam) == expected


def test_an_unknown_machine_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^unknown hw 'tpu_v2': did you mean 'tpu_v1'\? choose one of "):
        octo_exp.price(made(), (1, 12, 12), batch_size=1, hw="tpu_v2")
    with pytest.raises(UserError, match=r"^price takes a torch.nn.Module, got str$"):
        octo_exp.price("net", (1, 12, 12), batch_size=1, hw="tpu_v1")


def test_a_trained_net_becomes_a_graph_that_a_file_keeps(tmp_path: Path) -> None:
    net, images = octo_exp.quantize(made(), "octo"), torch.rand(16, 1, 12, 12)
    net(images).square().mean().backward()
    graph = octo_exp.calibrate(net, [images], fresh=made(), activations="absmax")
    octo_exp.write_graph(graph, tmp_path / "net.pkl")
    integers, again = octo_exp.IntegerNet(graph), octo_exp.IntegerNet(octo_exp.read_graph(tmp_path / "net.pkl"))
    assert torch.equal(integers(images), again(images))
    # Codes of the logits are some 1/256 of their range apart.
    wanted = net.eval()(images).detach()
    assert (integers(images) - wanted).abs().max() < 0.1 * (wanted.max() - wanted.min())


def test_what_calibrate_cannot_do_is_one_line() -> None:
    net, images = octo_exp.quantize(made(), "int8"), torch.rand(2, 1, 12, 12)
    with pytest.raises(UserError, match=r"^the model is quantised for training: give fresh="):
        octo_exp.calibrate(net, [images])
    with pytest.raises(ConfigError, match=r"^unknown setting 'percentil' of calibrate: did you mean 'percentile'\?"):
        octo_exp.calibrate(made(), [images], percentil=99.0)
