"""What fine-tuning one thing beside the head gives: a few steps from a common start, measured on held-out images."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.update.convolutions import backbone
from octo_exp.graph.train.update.rule import UpdateRule
from octo_exp.graph.train.update.selection import SparseUpdate

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """train_images, val_images: how many are used, the first of each, all where there are fewer.

    batch_size: images a step.
    head_steps: steps of the head alone, once. steps: of each probe, from there. lr: of both, in place of the rule's.
    """

    train_images: int
    val_images: int
    batch_size: int
    head_steps: int
    steps: int
    lr: float

    def __post_init__(self) -> None:
        """Refuse counts below 1 and a rate of 0."""
        for name in ("train_images", "val_images", "batch_size", "head_steps", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"update.search.probe.{name}={getattr(self, name)} must be 1 or more")
        if not self.lr > 0:
            raise UserError(f"update.search.probe.lr={self.lr} must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Share of held-out images that are classified right, and their mean cross-entropy."""

    accuracy: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasProbe:
    """The biases of the last `n_bias` convolutions; 0 is the head alone."""

    n_bias: int

    @property
    def name(self) -> str:
        """The probe in words."""
        return f"biases of the last {self.n_bias}"

    def apply(self, net: McuNet, sparse: SparseUpdate) -> None:
        """Set what trains."""
        replace(sparse, n_bias=self.n_bias, n_weight=0, weight_idx=None, ratio=None).apply(net)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightProbe:
    """The weights of a share of one convolution's input channels, and no bias."""

    conv: int
    ratio: float

    @property
    def name(self) -> str:
        """The probe in words."""
        return f"weights of {self.conv} at {self.ratio:g}"

    def apply(self, net: McuNet, sparse: SparseUpdate) -> None:
        """Set what trains."""
        replace(sparse, n_bias="all", weight_idx=[self.conv], ratio=[self.ratio]).apply(net)
        for conv in backbone(net):
            conv.update = replace(conv.update, train_bias=False)
            conv.bias.requires_grad_(False)


class Prober:
    """Runs probes on a network, each from the imported backbone and one and the same trained head.

    Call it inside `preserved(net)`. Every probe sees the same batches in the same order, so that two probes differ by
    what they train alone.
    """

    def __init__(
        self, net: McuNet, *, rule: UpdateRule, train: list[Batch], val: list[Batch], settings: ProbeSettings
    ) -> None:
        self._net, self._rule, self._settings = net, replace(rule, lr=settings.lr), settings
        self._train, self._val = train, val

    def __call__(self, probe: BiasProbe | WeightProbe) -> Outcome:
        """Train what the probe says and measure."""
        start = self._start
        with torch.no_grad():
            for parameter, value in zip(self._net.parameters(), start, strict=True):
                parameter.copy_(value)
        probe.apply(self._net, self._rule.sparse)
        if probe == BiasProbe(n_bias=0):
            self._fit(self._classify, self._features(self._train), self._settings.steps)
            return self._measure(self._classify, self._features(self._val))
        self._fit(self._net, self._train, self._settings.steps)
        return self._measure(self._net, self._val)

    @cached_property
    def _start(self) -> list[Tensor]:
        """Every parameter after the head's own training."""
        BiasProbe(n_bias=0).apply(self._net, self._rule.sparse)
        self._fit(self._classify, self._features(self._train), self._settings.head_steps)
        return [parameter.detach().clone() for parameter in self._net.parameters()]

    def _fit(self, forward: Callable[[Tensor], Tensor], batches: list[Batch], steps: int) -> None:
        optimizer = self._rule.build_optimizer(self._net, self._rule.parameter_groups(self._net))
        for x, labels in islice(cycle(batches), steps):
            optimizer.zero_grad()
            F.cross_entropy(forward(x), labels).backward()
            optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def _measure(self, forward: Callable[[Tensor], Tensor], batches: list[Batch]) -> Outcome:
        right, loss, count = 0, 0.0, 0
        for x, labels in batches:
            logits = forward(x)
            right += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
        return Outcome(accuracy=right / count, loss=loss / count)

    def _classify(self, features: Tensor) -> Tensor:
        """What the head is given -> logits, as the network's own forward pass ends."""
        logits: Tensor = self._net.head(features)
        return logits.flatten(1)

    @torch.no_grad()
    def _features(self, batches: list[Batch]) -> list[Batch]:
        """What the head is given, in place of the images."""
        seen: list[Tensor] = []
        handle = self._net.head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0]))
        try:
            for x, _ in batches:
                self._net(x)
        finally:
            handle.remove()
        return [(x, labels) for x, (_, labels) in zip(seen, batches, strict=True)]


@contextmanager
def preserved(net: McuNet) -> Iterator[None]:
    """Evaluation mode and no gradients inside; after it weights, gradients, updates and modes are as before."""
    parameters = [(p, p.detach().clone(), p.grad, p.requires_grad) for p in net.parameters()]
    updates = [(conv, conv.update) for conv in net.convs]
    modes: list[tuple[nn.Module, bool]] = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        for parameter in net.parameters():
            parameter.grad = None
        yield
    finally:
        with torch.no_grad():
            for parameter, value, grad, requires_grad in parameters:
                parameter.copy_(value).requires_grad_(requires_grad)
                parameter.grad = grad
        for conv, update in updates:
            conv.update = update
        for module, training in modes:
            module.training = training


def subset(batches: Iterable[Batch], *, name: str, images: int, batch_size: int, device: torch.device) -> list[Batch]:
    """Return the first `images` of (images [N, C, H, W], labels [N]) in batches of `batch_size`, read no further.

    Where there are fewer it is all of them, which is logged.

    Raises:
        UserError: there are none.

    """
    parts: list[Batch] = []
    found = 0
    for x, labels in batches:
        parts.append((x[: images - found].to(device), labels[: images - found].to(device)))
        found += len(parts[-1][1])
        if found == images:
            break
    if not found:
        raise UserError(f"update.search.probe.{name}={images}: the data has no images; the search needs one at least")
    if found < images:
        log.info("update.search.probe.%s=%d: the data has %d images, all of them are used", name, images, found)
    x, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return list(zip(x.split(batch_size), labels.split(batch_size), strict=True))
