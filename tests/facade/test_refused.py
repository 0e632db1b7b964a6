"""What the door refuses: one line each, and the model stays what it was."""

import numpy as np
import pytest
import torch
from torch import nn

import octo_exp
from octo_exp.base.errors import ConfigError, UserError
from octo_exp.nn.layers import QuantLayer
from tests.facade.strangers import gradient, noisy, plain_net
from tests.refusals import assert_names

REFUSALS = {
    "unknown scheme": (lambda: octo_exp.quantize(plain_net(), "oct"), "'oct' ... mean 'octo'"),
    "unknown field": (lambda: octo_exp.quantize(plain_net(), bit=4), "'bit' ... mean 'bits'"),
    "unknown field of an operand": (
        lambda: octo_exp.scheme("int8", g={"roundin": 1}),
        "roundin' ... mean 'g.rounding'",
    ),
    "fields of a part that is not there": (lambda: octo_exp.scheme("int8", clip={"rho": 1}), "clip' is null"),
    "a value out of range": (lambda: octo_exp.scheme("int8", bits=9), "bits ... 2 to 8"),
    "a width in quotes": (lambda: octo_exp.scheme("int8", bits="4"), "bits ... got '4'"),
    "a width of no whole number": (lambda: octo_exp.scheme("int8", x={"bits": 4.5}), "got 4.5"),
    "a name for an operand": (lambda: octo_exp.scheme("int8", g="stochastic"), "'g' has fields"),
    "a word for a number": (lambda: octo_exp.scheme("int8", x={"momentum": "a"}), "not supported between"),
    "a name for a list": (lambda: octo_exp.scheme("int8", skip="last"), "quant.skip='last' is no list"),
    "nothing for a list": (lambda: octo_exp.scheme("int8", skip=None), "quant.skip=None is no list"),
    "a number for a layer": (lambda: octo_exp.scheme("int8", overrides={0: {"bits": 4}}), "in quotes"),
    "a layer without fields": (lambda: octo_exp.scheme("int8", overrides={"0": 4}), "does not map names"),
    "a seed that is none": (lambda: octo_exp.quantize(plain_net(), "int8", skip=[], seed="a"), "seed='a' is no"),
    "a single layer": (lambda: octo_exp.quantize(nn.Linear(4, 4), "int8", skip=[]), "wrap it in nn.Sequential"),
    "a scheme of trained nets": (lambda: octo_exp.scheme("ptq"), "quantises a trained network"),
    "nothing to quantise": (lambda: octo_exp.quantize(nn.Sequential(nn.ReLU())), "matches no layer"),
    "quantised already": (lambda: octo_exp.quantize(noisy(plain_net())), "quantised already"),
    "no module": (lambda: octo_exp.quantize("vgg11"), "takes a torch.nn.Module"),
    "no kernels there": (lambda: octo_exp.quantize(plain_net().to("meta"), "int8", skip=[]), "not on meta"),
    "changes of a made scheme": (
        lambda: octo_exp.quantize(plain_net(), octo_exp.scheme("int8"), bits=4),
        "bits: a scheme",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_is_one_line(case: str) -> None:
    call, words = REFUSALS[case]
    with pytest.raises((UserError, ConfigError)) as caught:
        call()
    assert_names(caught.value, words)


def test_a_seed_of_numpys_draws_what_it_draws_when_it_is_loaded() -> None:
    net = noisy(plain_net(), seed=np.int64(7))
    assert torch.equal(gradient(net), gradient(noisy(plain_net(), seed=7)))


def test_a_refused_model_is_left_as_it_was() -> None:
    net = plain_net()
    with pytest.raises(UserError):
        octo_exp.quantize(net, "int8", skip=["features.*"])
    assert not any(isinstance(module, QuantLayer) for module in net.modules())
    assert not net._forward_pre_hooks
