"""Which images, in which order: keyed generators, stratified draws, the epoch sampler, the loader over memory."""

import hashlib
from collections.abc import Iterator
from enum import IntEnum

import torch
from torch import Tensor

from octo_exp.data.pixels import Rows

# Images [B, C, K, K] uint8, labels [B] int64 and, in training only, the key (epoch, step) that augmentation draws from.
Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, tuple[int, int]]


class Stream(IntEnum):
    """Purposes of randomness: one seed gives each its own, unrelated stream."""

    SHUFFLE = 0
    AUGMENT = 1
    VALIDATION_SPLIT = 2
    LIMIT = 3
    DIGITS_TEST_SPLIT = 4
    CALIBRATION = 5
    OWN = 6


def keyed_generator(stream: Stream, *key: int) -> torch.Generator:
    """CPU generator whose state is a function of (stream, key) alone.

    A hash rather than numpy's SeedSequence, which takes (a,) and (a, 0) for the same key.
    """
    digest = hashlib.blake2b(repr((int(stream), *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def stratified_indices(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` of the images so that every class keeps its share, rounded by largest remainder.

    labels [N] int64, 0 <= count <= N -> indices [count] int64, without repetition, classes mixed.
    """
    sizes = torch.bincount(labels)
    # Integer arithmetic: quota_k = floor(count * n_k / N), and what is left goes to the largest remainders.
    scaled = sizes * count
    quotas, remainders = scaled // len(labels), scaled % len(labels)
    left = count - int(quotas.sum())
    quotas[torch.argsort(remainders, descending=True, stable=True)[:left]] += 1
    chosen = []
    for label, quota in enumerate(quotas.tolist()):
        members = torch.nonzero(labels == label).flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:quota]])
    drawn = torch.cat(chosen)
    return drawn[torch.randperm(count, generator=generator)]


class EpochSampler:
    """Yields one list of indices a batch; the order of an epoch is a function of (seed, epoch) alone.

    Lightning calls `set_epoch` before every epoch, also after a resume, but it makes the iterator before it does so:
    the order must therefore be drawn at the first `next`, which a generator function does.
    """

    def __init__(self, *, size: int, batch_size: int, seed: int, shuffle: bool, drop_last: bool) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        # A set smaller than one batch would leave nothing to train on.
        self.drop_last = drop_last and size > batch_size
        self.epoch = 0

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order that the next iteration draws."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        if self.shuffle:
            order = torch.randperm(self.size, generator=keyed_generator(Stream.SHUFFLE, self.seed, self.epoch)).tolist()
        else:
            order = list(range(self.size))
        for step in range(len(self)):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]


class BatchLoader:
    """Batches of images that lie in memory or are mapped; knows its place, which is the data module's state.

    Its own `state_dict` is empty, and only says to Lightning that it can go on: what a loader keeps there is not handed
    back (Lightning#20550).

    Not a torch DataLoader: that one draws from the global generator at every epoch, cannot say where it stands, is
    rebuilt without its batches by `overfit_batches`, and is told to use workers that these data do not need.

    Args:
        images: [N, C, K, K] uint8, or what gives them by a tensor of places.
        labels: [N] int64.
        order: the batches; with `shuffle` on it is also `loader.sampler`, where Lightning looks for `set_epoch`.
        keyed: append the key (epoch, step) to every batch.

    """

    def __init__(self, *, images: Tensor | Rows, labels: Tensor, order: EpochSampler, keyed: bool) -> None:
        self.images = images
        self.labels = labels
        self.order = order
        self.keyed = keyed
        if order.shuffle:
            # Only then: Lightning takes any `sampler` for a shuffled one.
            self.sampler = order
        self._place = (0, 0)
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.order.epoch
        start = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        for step, indices in enumerate(self.order):
            if step < start:
                continue
            # Set before the batch leaves: whoever saves while it is in use must go on with the next one.
            self._place = (epoch, step + 1)
            chosen = torch.tensor(indices)
            images, labels = self.images[chosen], self.labels[chosen]
            yield (images, labels, (epoch, step)) if self.keyed else (images, labels)

    def state_dict(self) -> dict[str, int]:
        """Return nothing: the place is the data module's to keep."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take nothing."""

    @property
    def place(self) -> tuple[int, int]:
        """Epoch, and how many of its batches were handed out."""
        return self._place

    def go_on(self, epoch: int, step: int) -> None:
        """Leave out the first `step` batches of the next iteration, if that is of `epoch`."""
        self._resume = self._place = (epoch, step)
