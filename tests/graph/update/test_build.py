import pytest
from hydra.utils import instantiate

from octo_exp.base.errors import UserError
from octo_exp.runs.assemble import build_module
from tests.configs import composed


def test_a_network_that_is_no_graph_has_nothing_to_choose(tmp_path):
    cfg = composed("update=qas", "model=lenet5", save_dir=tmp_path)
    datamodule = instantiate(cfg.data)
    datamodule.setup()
    with pytest.raises(UserError, match=r"update= chooses what of .* graph trains, and model=LeNet5 under"):
        build_module(cfg, datamodule)
