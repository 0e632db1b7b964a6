"""A probe trains one thing and the head, from the same start whatever ran before, and leaves the network as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F

from octo_exp.base.errors import UserError
from octo_exp.graph.train.update.rule import UpdateRule
from octo_exp.graph.train.update.search.probe import BiasProbe, Prober, ProbeSettings, WeightProbe, preserved, subset
from octo_exp.graph.train.update.selection import SparseUpdate
from tests.graph.update.helpers import Net, sparse

RULE = UpdateRule(
    sparse=SparseUpdate(**sparse()),
    optimizer="sgd_scale_nomom",
    mode="released",
    lr=9.0,
    weight_decay=0.0,
    budget_kb=None,
    search=None,
)


def probe_settings(**changes) -> ProbeSettings:
    usual = {"train_images": 16, "val_images": 10, "batch_size": 8, "head_steps": 3, "steps": 3, "lr": 1e-5}
    return ProbeSettings(**usual | changes)


def batches(images: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(images)
    x = torch.randn(images, 3, 4, 4, generator=generator)
    return list(zip(x.split(size), (torch.arange(images) % 3).split(size), strict=True))


def prober(net: Net, **changes) -> Prober:
    usual = {"rule": RULE, "train": batches(16, 8), "val": batches(10, 5), "settings": probe_settings()}
    return Prober(net, **usual | changes)


def _trains(conv, what: str) -> bool:
    return getattr(conv.update, f"train_{what}")


@pytest.mark.parametrize(
    ("probe", "moved"),
    [
        (BiasProbe(n_bias=0), set()),
        (BiasProbe(n_bias=2), {"body.2.bias", "body.3.bias"}),
        (WeightProbe(conv=1, ratio=1.0), {"body.1.weight"}),
        (WeightProbe(conv=2, ratio=0.5), {"body.2.weight"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("quantized_head", [False, True])
def test_what_a_probe_moves(probe, moved, quantized_head):
    net = Net(quantized_head=quantized_head)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    prober(net)(probe)
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == moved | {"head.weight", "head.bias"}
    told = {f"body.{i}.{what}" for i, conv in enumerate(net.body) for what in ("weight", "bias") if _trains(conv, what)}
    assert told == moved
    assert all(p.grad is None for p in net.parameters())
    if probe == WeightProbe(conv=2, ratio=0.5):
        rows = (net.body[2].weight != before["body.2.weight"]).flatten(1).any(1)
        assert rows.nonzero().flatten().tolist() == net.body[2].update.kept.tolist()


def test_a_probe_is_the_same_whatever_ran_before():
    probes = [WeightProbe(conv=3, ratio=0.5), BiasProbe(n_bias=4), BiasProbe(n_bias=0)]
    net = Net()
    with preserved(net):
        shared = prober(net)
        first, again = [shared(p) for p in probes], [shared(p) for p in reversed(probes)]
    alone = []
    for p in probes:
        with preserved(net):
            alone.append(prober(net)(p))
    assert first == again[::-1] == alone
    assert len({outcome.loss for outcome in first}) == 3


def test_the_heads_probe_is_its_training_in_the_whole_network():
    net = Net()
    expected = copy.deepcopy(net)
    RULE.sparse.apply(expected)
    expected.body.requires_grad_(False)
    optimizer = torch.optim.SGD(expected.head.parameters(), lr=1e-5)
    # Three steps of the head, then three of the probe, each from the first batch.
    for step in (0, 1, 0, 0, 1, 0):
        x, labels = batches(16, 8)[step]
        optimizer.zero_grad()
        F.cross_entropy(expected(x), labels).backward()
        optimizer.step()
    with torch.no_grad():
        logits = torch.cat([expected(x) for x, _ in batches(10, 5)])
    # Nine of ten right.
    labels = logits.argmax(1)
    labels[0] = logits[0].argmin()
    val = [(x, part) for (x, _), part in zip(batches(10, 5), labels.split(5), strict=True)]
    outcome = prober(net, val=val)(BiasProbe(n_bias=0))
    assert torch.equal(net.head.weight, expected.head.weight)
    assert outcome.accuracy == 0.9
    # A sum of ten losses in float32.
    assert outcome.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=10 * 2**-23)


def _cut_off(run: Prober) -> None:
    run(WeightProbe(conv=3, ratio=0.5))
    raise ZeroDivisionError


def test_a_network_is_left_as_it_was():
    net = Net().requires_grad_(False).train()
    net.body[1].eval()
    net.body[0].weight.requires_grad_(True).grad = torch.ones_like(net.body[0].weight)
    before, updates = copy.deepcopy(net), [conv.update for conv in net.convs]
    grad = net.body[0].weight.grad
    random = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), preserved(net):
        _cut_off(prober(net))
    for (name, p), q in zip(net.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert p.requires_grad == q.requires_grad
        assert p.grad is (grad if name == "body.0.weight" else None)
    assert torch.equal(grad, torch.ones_like(grad))
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert all(conv.update is update for conv, update in zip(net.convs, updates, strict=True))
    assert not net.head._forward_pre_hooks
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("images", [1, 7, 16, 63, 65])
def test_a_subset_is_the_first_images_in_new_batches(images):
    whole, read = batches(130, 16), []

    def counted():
        for batch in whole:
            read.append(len(batch[1]))
            yield batch

    parts = subset(counted(), name="train_images", images=images, batch_size=7, device="cpu")
    assert [len(labels) for _, labels in parts] == [7] * (images // 7) + [images % 7] * (images % 7 > 0)
    for place in (0, 1):
        got, expected = (torch.cat([b[place] for b in part]) for part in (parts, whole))
        assert torch.equal(got, expected[:images])
    assert sum(read) < images + 16


@pytest.mark.parametrize("there", [1, 7, 16, 63, 65])
@pytest.mark.parametrize("missing", [0, 1, 100])
def test_of_fewer_images_than_wanted_all_are_taken_and_it_is_logged_once(there, missing, caplog):
    with caplog.at_level("INFO"):
        parts = subset(batches(there, 8), name="val_images", images=there + missing, batch_size=7, device="cpu")
    assert torch.equal(torch.cat([x for x, _ in parts]), torch.cat([x for x, _ in batches(there, 8)]))
    assert torch.equal(torch.cat([labels for _, labels in parts]), torch.arange(there) % 3)
    told = f"update.search.probe.val_images={there + missing}: the data has {there} images, all of them are used"
    assert caplog.messages == [told] * (missing > 0)


@pytest.mark.parametrize("empty", [[], [(torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64))]])
def test_no_images_are_refused(empty):
    with pytest.raises(UserError, match=r"^update\.search\.probe\.val_images=17: the data has no images; ") as error:
        subset(empty, name="val_images", images=17, batch_size=7, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["train_images", "val_images", "batch_size", "head_steps", "steps", "lr"])
def test_settings_of_nothing_are_refused(name):
    with pytest.raises(UserError, match=rf"^update\.search\.probe\.{name}=0 must be"):
        probe_settings(**{name: 0})
