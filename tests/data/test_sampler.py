from itertools import chain

import pytest
import torch

from octo_exp.data.sampler import BatchLoader, EpochSampler, Stream, keyed_generator, stratified_indices


def sampler(*, size: int = 23, batch_size: int = 4, seed: int = 0, shuffle: bool = True, drop_last: bool = False):
    return EpochSampler(size=size, batch_size=batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last)


def loader(**changes) -> BatchLoader:
    images = torch.arange(23, dtype=torch.uint8).view(23, 1, 1, 1)
    return BatchLoader(images=images, labels=torch.arange(23), order=sampler(**changes), keyed=True)


def test_generator_is_a_function_of_its_key() -> None:
    def draw(*key: int) -> list[int]:
        return torch.randint(0, 1 << 30, (4,), generator=keyed_generator(*key)).tolist()

    keys = [(stream, *key) for stream in Stream for key in ((), (0,), (1,), (0, 1), (1, 0), (0, 0, 1))]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    assert draw(Stream.SHUFFLE, 5, 6) == draw(Stream.SHUFFLE, 5, 6)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (7, 63), (63, 7), (64, 8), (23, 4)])
def test_every_image_once_an_epoch(size: int, batch_size: int, shuffle: bool) -> None:
    batches = list(sampler(size=size, batch_size=batch_size, shuffle=shuffle))
    assert sorted(chain.from_iterable(batches)) == list(range(size))
    assert (list(chain.from_iterable(batches)) == list(range(size))) == (not shuffle or size == 1)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(sampler(size=size, batch_size=batch_size)) == len(batches)


@pytest.mark.parametrize(
    ("size", "sizes"), [(3, [3]), (4, [4]), (5, [4]), (7, [4]), (8, [4, 4]), (9, [4, 4])], ids=lambda value: str(value)
)
def test_drop_last_keeps_a_lone_batch(size: int, sizes: list[int]) -> None:
    chosen = sampler(size=size, drop_last=True)
    assert [len(batch) for batch in chosen] == sizes
    assert len(chosen) == len(sizes)


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        chosen = sampler(seed=seed)
        chosen.set_epoch(epoch)
        torch.rand(7)
        return tuple(chain.from_iterable(chosen))

    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    assert all(order(*key) == value for key, value in orders.items())


@pytest.mark.parametrize("make", [sampler, loader])
def test_epoch_set_after_the_iterator_was_made_counts(make) -> None:
    # Lightning, on the first epoch and after a resume: iter(), set_epoch(), next().
    late, early = make(), make()
    iterator = iter(late)
    late.sampler.set_epoch(2) if isinstance(late, BatchLoader) else late.set_epoch(2)
    early.sampler.set_epoch(2) if isinstance(early, BatchLoader) else early.set_epoch(2)
    assert str(list(iterator)) == str(list(early))
    assert str(list(early)) != str(list(make()))


def test_loader_gives_images_labels_and_key() -> None:
    chosen = loader()
    chosen.sampler.set_epoch(3)
    batches = list(chosen)
    assert len(batches) == len(chosen) == 6
    assert [key for *_, key in batches] == [(3, step) for step in range(6)]
    for (images, labels, _), indices in zip(batches, chosen.order, strict=True):
        assert labels.tolist() == indices
        assert images.dtype == torch.uint8
        assert images.flatten().tolist() == indices


def test_loader_without_shuffle_shows_no_sampler() -> None:
    # Lightning takes a loader with a sampler of a class it does not know for a shuffled one.
    assert not hasattr(loader(shuffle=False), "sampler")


@pytest.mark.parametrize("taken", [1, 3, 5])
def test_loader_goes_on_inside_an_epoch(taken: int) -> None:
    whole, first, second = loader(), loader(), loader()
    for chosen in (whole, first, second):
        chosen.sampler.set_epoch(1)
    batches = [labels.tolist() for _, labels, _ in whole]
    iterator = iter(first)
    for _ in range(taken):
        next(iterator)
    second.go_on(*first.place)
    assert [labels.tolist() for _, labels, _ in second] == batches[taken:]
    # The next epoch is whole again.
    assert [labels.tolist() for _, labels, _ in second] == batches


def test_loader_saved_at_the_end_starts_the_next_epoch() -> None:
    first, second = loader(), loader()
    list(first)
    assert first.place == (0, 6)
    second.go_on(*first.place)
    assert second.place == first.place
    second.sampler.set_epoch(1)
    assert [key for *_, key in second] == [(1, step) for step in range(6)]


@pytest.mark.parametrize(
    ("sizes", "count", "quotas"),
    [
        ([10, 10, 10], 3, [1, 1, 1]),
        ([10, 20, 70], 10, [1, 2, 7]),
        # Shares 1.5, 1.5, 7: of two equal remainders the first class gets the image.
        ([15, 15, 70], 10, [2, 1, 7]),
        # Shares 0.02, 0.98.
        ([2, 98], 1, [0, 1]),
        ([3, 0, 4], 7, [3, 0, 4]),
        ([3, 4], 0, [0, 0]),
    ],
)
def test_stratified_quotas(sizes: list[int], count: int, quotas: list[int]) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    chosen = stratified_indices(labels, count, keyed_generator(Stream.LIMIT, 0))
    assert len(chosen) == len(set(chosen.tolist())) == count
    assert torch.bincount(labels[chosen], minlength=len(sizes)).tolist() == quotas


def test_stratified_draw_repeats_mixes_and_differs() -> None:
    labels = torch.arange(300) // 100

    def draw(seed: int) -> list[int]:
        return stratified_indices(labels, 30, keyed_generator(Stream.LIMIT, seed)).tolist()

    assert draw(0) == draw(0)
    assert sorted(draw(0)) != sorted(draw(1))
    # Not one class after the other: the first batch of a limited test split shows all of them.
    assert len(set(labels[draw(0)[:10]].tolist())) == 3
