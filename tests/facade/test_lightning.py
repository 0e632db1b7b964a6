"""Int8 layers in a stranger's LightningModule, by a callback of their Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from octo_exp.base.errors import UserError
from octo_exp.lightning import Int8
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.compensation import Affine
from octo_exp.quant.quantizer import Quantizer
from tests.facade.strangers import NETS, StrangersModule, pictures
from tests.nn.doors import watched_doors

# Lightning 2.6 counts its own hooks by a deprecated method of torch's.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


def _fit(folder: Path, name: str, *, epochs: int, ckpt: Path | None = None, **options: Any) -> StrangersModule:
    torch.manual_seed(0)
    module = StrangersModule(NETS[name]())
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Int8(**{"scheme": "octo", "g": {"rounding": "stochastic"}, **options})],
    )
    trainer.fit(module, DataLoader(TensorDataset(*pictures()), batch_size=16), ckpt_path=ckpt, weights_only=False)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return module


def _weights(module: StrangersModule) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("name", NETS)
def test_a_run_that_goes_on_from_a_checkpoint_equals_one_that_never_stopped(name: str, tmp_path: Path) -> None:
    with watched_doors() as seen:
        _fit(tmp_path, name, epochs=1)
    assert set(seen) == {torch.int8}
    resumed = _weights(_fit(tmp_path, name, epochs=2, ckpt=tmp_path / "1.ckpt"))
    unbroken = _weights(_fit(tmp_path, name, epochs=2))
    assert resumed.keys() == unbroken.keys()
    assert any("compensator" in key for key in resumed)
    assert all(torch.equal(value, unbroken[key]) for key, value in resumed.items())


def test_layers_are_converted_once_and_optimized_with_their_compensation(tmp_path: Path) -> None:
    module = _fit(tmp_path, "depthwise", epochs=1)
    layers = [part for part in module.modules() if isinstance(part, QuantLayer)]
    assert len(layers) == 3
    assert all(layer.compensator.theta.abs().sum() > 0 for layer in layers)
    again = Int8("octo", g={"rounding": "stochastic"})
    again.setup(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), module, "validate")
    assert [part for part in module.modules() if isinstance(part, QuantLayer)] == layers


def test_what_the_compensation_adds_to_the_loss_is_in_the_gradients(tmp_path: Path) -> None:
    affine = {"granularity": "channel", "learning_rate": 0.001, "init_std": 0.5}
    weak = _fit(tmp_path, "depthwise", epochs=1, compensation=Affine(**affine, decay=0.0))
    strong = _fit(tmp_path, "depthwise", epochs=1, compensation=Affine(**affine, decay=5.0))

    def size(module: StrangersModule) -> float:
        return sum(
            float(p.detach().square().sum()) for n, p in module.named_parameters() if n.endswith(("mu", "offset"))
        )

    assert size(strong) < size(weak)


def test_a_checkpoint_of_another_scheme_is_refused_in_one_line(tmp_path: Path) -> None:
    _fit(tmp_path, "vit", epochs=1)
    with pytest.raises(UserError, match=r"Int8: x\.bits is 4, and the checkpoint's was 8") as caught:
        _fit(tmp_path, "vit", epochs=2, ckpt=tmp_path / "1.ckpt", bits=4)
    assert "\n" not in str(caught.value)


def _trainer(**options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**{"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False, **quiet, **options})


def _noise(**options: Any) -> Int8:
    return Int8(**{"scheme": "int8", "g": {"rounding": "stochastic"}, **options})


def _batches() -> DataLoader:
    return DataLoader(TensorDataset(*pictures()), batch_size=16)


class Validated(StrangersModule):
    """With a validation, which Lightning tries before the first batch."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val", self.net(batch[0]).abs().mean())


def test_a_fit_with_validation_trains_before_it_validates() -> None:
    trainer = _trainer(callbacks=[_noise()])
    trainer.fit(Validated(NETS["depthwise"]()), _batches(), _batches())
    assert torch.isfinite(trainer.callback_metrics["val"])


def test_a_module_that_was_quantised_before_draws_in_every_batch_anew() -> None:
    module = StrangersModule(NETS["depthwise"]())
    for _ in range(2):
        trainer = _trainer(callbacks=[_noise(seed=3)])
        trainer.fit(module, _batches())
        clocks = [part.clock for part in module.modules() if isinstance(part, QuantLayer | Quantizer)]
        assert all(clock is trainer.callbacks[0].clock for clock in clocks)
    with pytest.raises(UserError, match=r"name is octo, and in net\.block\.0, which is quantised already, int8"):
        _trainer(callbacks=[Int8("octo")]).fit(module, _batches())


class Late(StrangersModule):
    """Makes its layers in a hook, as a module does that is too large for the host."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 1, 1))

    def configure_model(self) -> None:
        if isinstance(self.net, nn.Conv2d):
            self.net = NETS["depthwise"]()


class LateInSetup(StrangersModule):
    """The same, in the other hook."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 1, 1))

    def setup(self, stage: str) -> None:
        if isinstance(self.net, nn.Conv2d):
            self.net = NETS["depthwise"]()


@pytest.mark.parametrize("kind", [Late, LateInSetup])
def test_layers_that_are_made_in_a_hook_are_quantised(kind: type[StrangersModule]) -> None:
    module = kind()
    _trainer(callbacks=[_noise()]).fit(module, _batches())
    assert sum(isinstance(part, QuantLayer) for part in module.modules()) == 3
    assert "configure_model" not in vars(module)


class Frozen(StrangersModule):
    """Only a factor of its own learns."""

    def __init__(self) -> None:
        super().__init__(NETS["depthwise"]())
        self.factor = nn.Parameter(torch.ones(()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.net.requires_grad_(False)
        return (self.net(batch[0]) * self.factor).square().mean()


def test_a_frozen_compensation_adds_no_gradient() -> None:
    _trainer(callbacks=[Int8("octo", compensation="affine")]).fit(Frozen(), _batches())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_precision_without_float_weights_is_refused_in_one_line(precision: str) -> None:
    with pytest.raises(UserError, match=f"precision={precision} leaves no float32 weights") as caught:
        _trainer(callbacks=[_noise()], precision=precision).fit(StrangersModule(NETS["vit"]()), _batches())
    assert "\n" not in str(caught.value)


def test_a_wrong_name_is_told_where_it_stands() -> None:
    with pytest.raises(UserError, match=r"'oct'.* mean 'octo'"):
        Int8("oct")
    with pytest.raises(UserError, match=r"'bit'.* mean 'bits'"):
        Int8("octo", bit=4)
