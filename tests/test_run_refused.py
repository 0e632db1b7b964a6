"""A user's mistake is one line, and nothing is left that looks like a run."""

import pytest
import torch
from lightning import Callback

from octo_exp.base.errors import UserError
from tests.run_helpers import SMALL, go


def test_a_loss_that_is_not_finite_names_the_layer_and_keeps_the_checkpoint(tmp_path):
    class Poison(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.net.classifier[0].weight.data[0, 0] = float("nan")

    globals()["Poison"] = Poison
    with pytest.raises(UserError, match=r"loss is nan at epoch 1.*layer classifier\.0; .*last\.ckpt") as caught:
        go(tmp_path, *SMALL, "quant=octo", callbacks={"poison": {"_target_": f"{__name__}.Poison"}})
    assert "lower optim.optimizer.lr" in str(caught.value)
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.num_classes=5"], "model gives 5 classes and digits has 10"),
        (["model.in_channels=3"], "model and data do not fit.*model.in_channels"),
        (["train=false"], "give ckpt="),
        (["ckpt=/nowhere/x.ckpt"], "ckpt=/nowhere/x.ckpt: no such file"),
        (["init_from=/nowhere"], "init_from=/nowhere: no such file or folder"),
        (["quant.skip=[first,last,classifier.0]"], "matches no layer"),
        (["quant.skip=[conv9]"], "'conv9' matches no layer; layers: features.0"),
        (["data.classes=7"], "class"),
        (["trainer.precision=bf16-true"], "quantised layers keep fp32 weights"),
    ],
)
def test_a_users_mistake_is_one_line_before_training(tmp_path, settings, message):
    with pytest.raises(Exception, match=message) as caught:
        go(tmp_path, *SMALL, *settings)
    error = caught.value
    while not isinstance(error, UserError):
        error = error.__cause__
        assert error is not None
    assert "\n" not in str(error)
    assert not (tmp_path / "checkpoints").exists()


def test_triton_is_refused_without_a_gpu_or_the_interpreter(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match=r"kernel=triton needs"):
        go(tmp_path, *SMALL, "kernel=triton", "trainer.accelerator=cpu")
