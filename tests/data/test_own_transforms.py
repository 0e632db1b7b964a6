"""`data.transforms`: a user's own changes of training images, drawn by the run's keys."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.config import check_arguments
from octo_exp.config.identity import identity, obstacle
from octo_exp.config.trust import check_targets
from octo_exp.data import ImageDataModule
from tests.configs import composed
from tests.run_helpers import SMALL, go


class Noise(nn.Module):
    """Adds whole codes drawn from torch's global generator."""

    def __init__(self, strength: int) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.randint(-self.strength, self.strength + 1, images.shape)
        return (images + noise).clamp(0, 255).to(torch.uint8)


class Other(nn.Module):
    """Gives what no image is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        if self.kind == "raises":
            raise ValueError("two\nlines")
        return {"float": images.float(), "small": images[..., 1:], "none": None}[self.kind]


NOISE = "+data.transforms.noise._target_=tests.data.test_own_transforms.Noise"


def _digits(**transforms: nn.Module) -> ImageDataModule:
    datamodule: ImageDataModule = instantiate(composed("data=digits", "data.batch_size=16").data, transforms=transforms)
    return datamodule


def test_training_images_pass_and_others_do_not() -> None:
    plain, noisy = _digits(), _digits(noise=Noise(9))
    for datamodule in (plain, noisy):
        datamodule.setup()
        datamodule.trainer = type("Training", (), {"training": True})()  # type: ignore[assignment]
    batches = [next(iter(d.train_dataloader())) for d in (plain, noisy)]
    before = torch.random.get_rng_state()
    (a, labels), (b, same) = (d.on_after_batch_transfer(x, 0) for d, x in zip((plain, noisy), batches, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(labels, same)
    assert not torch.equal(a, b)
    assert torch.equal(noisy.on_after_batch_transfer(batches[1], 0)[0], b)
    tests = [d.on_after_batch_transfer(next(iter(d.test_dataloader())), 0)[0] for d in (plain, noisy)]
    assert torch.equal(*tests)


def test_modules_pass_images_on_in_their_order() -> None:
    class Times(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * 2

    class Plus(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images + 1

    ones = torch.ones(1, 1, 2, 2, dtype=torch.uint8)
    assert int(_digits(a=Times(), b=Plus()).own_transforms(ones, 0).max()) == 3
    assert int(_digits(a=Plus(), b=Times()).own_transforms(ones, 0).max()) == 4


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("float", "makes [2, 1, 28, 28] torch.float32 of [2, 1, 28, 28] torch.uint8"),
        ("small", "makes [2, 1, 28, 27] torch.uint8"),
        ("none", "makes NoneType"),
        ("raises", "data.transforms.odd: "),
    ],
)
def test_what_is_no_image_any_more_is_refused_before_training(kind: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        _digits(odd=Other(kind)).setup()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_adds_them_and_answers_a_near_miss(root: Path, tmp_path: Path) -> None:
    conf, place = root / "conf", f"hydra.run.dir={tmp_path / 'run'}"
    words = [NOISE, "+data.transforms.noise.strength=3", "trust=[tests]", place]
    assert check_arguments(words, config_dir=conf) == words
    with pytest.raises(ConfigError, match=r"'data\.augmnet'.* 'data\.augment'"):
        check_arguments(["+data.augmnet=null", place], config_dir=conf)


def test_only_trusted_modules_are_called() -> None:
    cfg = composed("data=digits", NOISE)
    with pytest.raises(ConfigError, match="tests is not trusted"):
        check_targets(cfg)
    check_targets(cfg, trust=["tests"])
    with pytest.raises(ConfigError, match=r"data\.transforms\.noise"):
        check_targets(composed("data=digits", "+data.transforms.noise._target_=torch.optim.SGD"))


def test_none_of_them_is_the_run_of_before_there_were_any() -> None:
    def fingerprint(**data: Any) -> str:
        return str(identity({"data": {"seed": 0, **data}}, {})["fingerprint"])

    assert fingerprint(transforms={}) == fingerprint()
    assert fingerprint(transforms={"noise": {"strength": 3}}) != fingerprint()


def test_their_order_is_of_what_a_run_is() -> None:
    def told(*names: str) -> dict[str, Any]:
        return identity({"data": {"transforms": {name: {"strength": 3} for name in names}}, "source": None}, {})

    one, other = told("a", "b"), told("b", "a")
    assert one["fingerprint"] != other["fingerprint"]
    assert obstacle(one, other) is not None
    assert told("a")["config"] == {"data.transforms.a.strength": 3, "source": None}


def test_a_run_with_them_repeats(tmp_path: Path) -> None:
    noise = (*SMALL, "quant=fp32", NOISE, "+data.transforms.noise.strength=40")
    first = go(tmp_path / "a", *noise)
    assert go(tmp_path / "b", *noise)["weights_sha256"] == first["weights_sha256"]
    assert go(tmp_path / "c", *SMALL, "quant=fp32")["weights_sha256"] != first["weights_sha256"]
