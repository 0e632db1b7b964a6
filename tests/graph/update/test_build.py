import pytest
from hydra.utils import instantiate

from octo_exp.base.errors import UserError
from octo_exp.runs.assemble import build_module
from tests.configs import composed


def test_a_network_that_is_no_graph_has_nothing_to_choose(tmp_path):
    cfg = composed("update=qas", "model=lenet5", save_dir=tmp_path)
    datamodule = instantiate(cfg.data)
    datamodule.setup()
    told = r"^update= chooses what of a microcontroller graph trains, and model=LeNet5 under quant=.* is none; use "
    with pytest.raises(UserError, match=told):
        build_module(cfg, datamodule)
