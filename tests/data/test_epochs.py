"""What Lightning trains on: order and augmentation by (seed, epoch, step), also after an interruption."""

from pathlib import Path

import pytest
import torch

from octo_exp.data.augment import crop_flip
from octo_exp.data.sampler import Stream, keyed_generator
from octo_exp.data.transforms import normalize
from tests.data.helpers import AUGMENT, RECIPE, Make, Save, assert_same_batches, fit, trainer


def test_set_epoch_is_called_and_orders_differ(digits: Make, tmp_path: Path) -> None:
    net = fit(digits(limit_train=200), tmp_path, max_epochs=3)
    orders = [[labels for at, _, _, labels in net.seen["train"] if at == epoch] for epoch in range(3)]
    assert [len(order) for order in orders] == [3, 3, 3]
    flat = [torch.cat(order).tolist() for order in orders]
    assert sorted(flat[0]) == sorted(flat[1]) == sorted(flat[2])
    assert len({tuple(order) for order in flat}) == 3
    # What Lightning trains on is what the loader of that epoch gives.
    data = digits(limit_train=200)
    data.setup()
    loader = data.train_dataloader()
    for epoch, order in enumerate(flat):
        loader.sampler.set_epoch(epoch)
        assert torch.cat([labels for _, labels, _ in loader]).tolist() == order


def test_augmentation_is_keyed_and_for_training_only(digits: Make, tmp_path: Path) -> None:
    data = digits(augment=AUGMENT, limit_train=200)
    net = fit(data, tmp_path, max_epochs=2)
    loader = data.train_dataloader()
    for epoch, step, images, labels in net.seen["train"]:
        loader.sampler.set_epoch(epoch)
        raw, expected_labels, key = list(loader)[step]
        assert key == (epoch, step)
        generator = keyed_generator(Stream.AUGMENT, 0, epoch, step)
        augmented = crop_flip(raw, crop_padding=2, hflip=True, generator=generator)
        assert not torch.equal(augmented, raw)
        assert torch.equal(images, normalize(augmented, mean=data.mean, std=data.std))
        assert torch.equal(labels, expected_labels)
    trainer(tmp_path).test(net, datamodule=data, verbose=False)
    for name, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = [normalize(images, mean=data.mean, std=data.std) for images, _ in loader]
        seen = [images for _, _, images, _ in net.seen[name]]
        assert all(torch.equal(a, b) for a, b in zip(seen[-len(batches) :], batches, strict=True))


def test_training_batches_are_not_augmented_outside_training(digits: Make) -> None:
    data = digits(augment=AUGMENT)
    data.setup()
    raw = next(iter(data.train_dataloader()))
    images, labels = data.on_after_batch_transfer(raw, 0)
    assert torch.equal(images, normalize(raw[0], mean=data.mean, std=data.std))
    assert torch.equal(labels, raw[1])


@pytest.mark.parametrize("augment", [AUGMENT, RECIPE])
@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
def test_resumed_run_equals_an_uninterrupted_one(digits: Make, tmp_path: Path, hook: str, augment: dict) -> None:
    facts = {"augment": augment, "eval_crop": 0.875, "limit_train": 300}
    whole = fit(digits(**facts), tmp_path, max_epochs=4)
    first = fit(digits(**facts), tmp_path, Save(tmp_path, hook), max_epochs=2)
    assert len(first.seen["train"]) == 10
    torch.rand(5)
    second = fit(digits(**facts), tmp_path, ckpt=str(tmp_path / "10.ckpt"), max_epochs=4)
    assert {epoch for epoch, *_ in second.seen["train"]} == {2, 3}
    assert_same_batches(whole.seen["train"], first.seen["train"] + second.seen["train"])
    assert torch.equal(whole.layer.weight, second.layer.weight)
    # The batches of the epochs differ, or the comparison above would show nothing.
    assert not torch.equal(whole.seen["train"][0][2], second.seen["train"][0][2])


# With five batches an epoch: inside an epoch, and at the end of one but before its validation.
@pytest.mark.parametrize("step", [1, 4, 5, 6, 10, 14])
def test_resume_inside_an_epoch(digits: Make, tmp_path: Path, step: int) -> None:
    facts = {"augment": RECIPE if step == 6 else AUGMENT, "limit_train": 285}
    whole = fit(digits(**facts), tmp_path, Save(tmp_path, "on_train_batch_end"), max_epochs=3)
    assert len(whole.seen["train"]) == 15
    second = fit(digits(**facts), tmp_path, ckpt=str(tmp_path / f"{step}.ckpt"), max_epochs=3)
    assert_same_batches(whole.seen["train"][step:], second.seen["train"])
    assert torch.equal(whole.layer.weight, second.layer.weight)


def test_overfitting_a_batch_repeats_it(digits: Make, tmp_path: Path) -> None:
    net = fit(digits(), tmp_path, overfit_batches=1, max_epochs=3)
    assert [(epoch, step) for epoch, step, *_ in net.seen["train"]] == [(0, 0), (1, 0), (2, 0)]
    assert all(torch.equal(net.seen["train"][0][2], images) for _, _, images, _ in net.seen["train"])
