"""From a network and its data to a scheme that fits: gains, cache, resuming, the yaml of the result."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from octo_exp.base.errors import UserError
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.update.convolutions import LayerShape
from octo_exp.graph.train.update.search import Contributions, Exact, SearchSettings, search_scheme
from octo_exp.graph.train.update.search.contribution import gains_of
from octo_exp.graph.train.update.search.kept_probes import Cache, fingerprint
from octo_exp.graph.train.update.search.probe import BiasProbe, Outcome, WeightProbe
from octo_exp.graph.train.update.selection import SparseUpdate
from tests.graph.update.helpers import Net, model_file, sparse
from tests.graph.update.search.test_probe import RULE, batches, probe_settings
from tests.graph.update.test_configs import composed_rule

# Everything of `Net`.
ALL_KB = 20.0


def searched(net, path, *, budget_kb=ALL_KB, progress=lambda names: names, rule=RULE, probe=None, **changes):
    usual = {"ratios": [0.25, 1], "bias_step": 3, "measure": "loss", "solver": Exact()}
    return search_scheme(
        net,
        rule=rule,
        train_batches=batches(16, 8),
        val_batches=batches(10, 5),
        budget_kb=budget_kb,
        settings=SearchSettings(**usual | changes, probe=probe or probe_settings(lr=1e-4)),
        cache=path / "folder",
        progress=progress,
    )


def test_a_search_finds_a_scheme_that_fits_and_leaves_the_network(tmp_path):
    net, random = Net(), torch.get_rng_state()
    before = copy.deepcopy(net)
    for kb in (ALL_KB, 1.0, 0.1):
        result = searched(net, tmp_path, budget_kb=kb)
        account = replace(RULE, sparse=result.scheme).memory(net)
        assert result.memory == account
        assert account.kb <= kb
        assert result.gain >= 0
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters(), strict=True))
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]
    assert torch.equal(random, torch.get_rng_state())


def test_what_cannot_fit_is_not_probed(tmp_path):
    names = []
    searched(Net(), tmp_path, budget_kb=0.2, progress=lambda missing: names.extend(missing) or missing)
    # 204 bytes: head 7; biases of 3 and 2: 42 and 96; weights of 3 and 2 at 0.25: 92 and 100, of 3 in whole 368.
    assert names == ["biases of the last 0", "biases of the last 2", "weights of 3 at 0.25"]


def test_a_search_that_was_cut_off_goes_on(tmp_path):
    def cut_off(names):
        for i, name in enumerate(names):
            if i == 4:
                raise KeyboardInterrupt
            yield name

    def listed(names):
        seen.append(list(names))
        return names

    net, seen = Net(), []
    whole = searched(net, tmp_path / "whole", progress=listed)
    with pytest.raises(KeyboardInterrupt):
        searched(net, tmp_path, progress=cut_off)
    assert searched(net, tmp_path, progress=listed) == whole
    assert seen[1] == seen[0][4:]
    assert searched(net, tmp_path, progress=listed) == whole
    assert seen[2] == []
    assert sorted(path.suffix for path in (tmp_path / "folder").iterdir() if path.name != ".lock") == [".json"]


def test_a_larger_budget_and_another_network_share_the_folder(tmp_path):
    net, other, counts = Net(), Net(), []

    def counted(names):
        counts.append(len(names))
        return names

    for n, kb in ((net, 0.2), (net, ALL_KB), (other, 0.2), (net, ALL_KB), (other, 0.2)):
        searched(n, tmp_path, budget_kb=kb, progress=counted)
    # Of everything: biases of 0, 3 and 4, and weights at two ratios, of the first convolution's 3 channels at one.
    assert counts == [3, 8, 3, 0, 0]


def test_the_key_is_of_all_that_an_outcome_depends_on():
    net, other, settings = Net(), Net(), probe_settings()
    other.load_state_dict(net.state_dict())

    usual = {"rule": RULE, "train": batches(16, 8), "val": batches(10, 5), "settings": settings}

    def key(net=net, **changes):
        return fingerprint(net, **usual | changes)

    assert key() == key(other) == key(rule=replace(RULE, lr=1.0))
    other.body[3].bias.data[0] += 1
    keys = [key(), key(other), key(train=batches(10, 5)), key(val=batches(16, 8)), key(train=batches(16, 4))]
    brighter = [(x + 1, labels) for x, labels in batches(16, 8)]
    relabelled = [(x, labels.flip(0)) for x, labels in batches(16, 8)]
    flat = [(x.flatten(1), labels) for x, labels in batches(16, 8)]
    keys += [key(train=brighter), key(train=relabelled), key(train=flat)]
    keys += [key(settings=probe_settings(**{name: 2})) for name in ("steps", "head_steps", "lr")]
    keys += [key(rule=replace(RULE, mode="strict_int8")), key(rule=replace(RULE, optimizer="sgd"))]
    keys += [key(rule=replace(RULE, sparse=replace(RULE.sparse, **c))) for c in ({"seed": 1}, {"criteria": "random"})]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("content", ["{", "[1]", '{"x": {"loss": 1}}', "\xff"])
def test_a_broken_cache_is_made_anew(tmp_path, content, caplog):
    net, names = Net(), []
    searched(net, tmp_path, budget_kb=0.2)
    (file,) = (tmp_path / "folder").glob("*.json")
    whole = json.loads(file.read_text())
    file.write_text(content)
    searched(net, tmp_path, budget_kb=0.2, progress=lambda missing: names.extend(missing) or missing)
    assert set(names) == set(whole)
    assert {name: json.loads(file.read_text())[name] for name in whole} == whole
    assert caplog.text.count("made anew") == len(caplog.records) == 1


def test_a_cache_that_cannot_be_written_is_said_once_and_the_search_goes_on(tmp_path, caplog):
    net = Net()
    whole = searched(net, tmp_path / "whole")
    (tmp_path / "folder").touch()
    assert searched(net, tmp_path) == whole
    assert caplog.text.count("set OCTO_CACHE_DIR") == len(caplog.records) == 1


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_probe_that_diverged_is_remembered(tmp_path, loss, caplog):
    Cache(tmp_path, "a" * 64).add("x", Outcome(accuracy=0.5, loss=loss))
    # As earlier versions wrote it.
    (tmp_path / f"{'b' * 16}.json").write_text(json.dumps({"x": {"accuracy": 0.5, "loss": loss}}))
    old = Cache(tmp_path, "b" * 64)
    old.add("y", Outcome(accuracy=0.5, loss=1.0))
    for cache in (Cache(tmp_path, "a" * 64), old, Cache(tmp_path, "b" * 64)):
        assert repr(cache["x"].loss) == repr(loss)
    assert "y" in Cache(tmp_path, "b" * 64)
    assert not caplog.records


@pytest.mark.parametrize("keys", [("a" * 64, "b" * 64), ("a" * 64, "a" * 64)])
def test_two_jobs_at_once_keep_each_others_outcomes(tmp_path, keys):
    outcomes = [Outcome(accuracy=0.5, loss=1.0), Outcome(accuracy=0.25, loss=2.0)]
    jobs = [Cache(tmp_path / "folder", key) for key in keys]
    for name, job, outcome in zip("xy", jobs, outcomes, strict=True):
        job.add(name, outcome)
    assert [Cache(tmp_path / "folder", key)[name] for name, key in zip("xy", keys, strict=True)] == outcomes
    assert ("y" in Cache(tmp_path / "folder", keys[0])) == (keys[0] == keys[1])


def outcomes(losses: dict) -> dict:
    return {probe: Outcome(accuracy=1 - loss / 4, loss=loss) for probe, loss in losses.items()}


def test_gains_are_over_the_head_alone_and_linear_between():
    losses = {BiasProbe(n_bias=0): 1.0, BiasProbe(n_bias=6): 0.75, BiasProbe(n_bias=2): 0.5}
    found = gains_of(outcomes(losses | {WeightProbe(conv=3, ratio=0.5): 1.5}), measure="loss")
    assert found.head.loss == 1
    assert found.bias_gains() == [0, 0.25, 0.5, 0.4375, 0.375, 0.3125, 0.25]
    assert found.weight == {(3, 0.5): -0.5}
    assert gains_of(outcomes(losses), measure="accuracy").bias == {2: 0.125, 6: 0.0625}
    assert found.bias == {2: 0.5, 6: 0.25}


def test_without_a_probe_of_biases_there_is_no_gain():
    assert Contributions(head=Outcome(accuracy=1.0, loss=0.0), bias={}, weight={}).bias_gains() == [0.0]


@pytest.mark.parametrize("n_bias", [0, 2])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_biases_that_diverge_are_refused(n_bias, loss):
    losses = {BiasProbe(n_bias=0): 1.0} | {BiasProbe(n_bias=n_bias): loss}
    with pytest.raises(
        UserError, match=rf"^training biases of the last {n_bias} diverges .*lower update\.search\.probe\.lr"
    ):
        gains_of(outcomes(losses), measure="loss")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratios": [0.5, 0.25]}, "ratios="),
        ({"ratios": [0.0, 1.0]}, "ratios="),
        ({"ratios": [1.5]}, "ratios="),
        ({"bias_step": 0}, "bias_step=0"),
        ({"measure": "f1"}, "measure=f1; choose one of accuracy, loss"),
    ],
)
def test_settings_that_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=rf"^update\.search\.{message}"):
        searched(Net(), tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_bias": 3, "n_weight": 0, "weight_idx": [1, 3], "ratio": [0.125, 1.0]},
        {"n_bias": 3, "n_weight": 0},
        {"n_bias": 0, "n_weight": 0},
    ],
)
@pytest.mark.parametrize("base", ["full", "mcunet_5fps_99kb", "bias_only", "sparse"])
def test_the_yaml_is_the_scheme(tmp_path, changes, base):
    net = Net()
    result = replace(searched(net, tmp_path), scheme=SparseUpdate(**sparse(**changes)))
    text = result.yaml(model="net", base=base)
    written = yaml.safe_load(text)
    shapes = [LayerShape.of(conv) for conv in net.convs]
    assert written.pop("defaults") == [base, "_self_"]
    rule = instantiate(OmegaConf.merge(composed_rule(base), written), _convert_="all")
    assert rule.budget_kb is None
    assert rule.sparse.rules(shapes) == result.scheme.rules(shapes)
    assert text.startswith(f"# Found by a search of contributions: net {result.memory.kb:.3f} KB.\n")


@pytest.mark.data
def test_a_released_model_is_searched(tmp_path):
    net = McuNet(read_model(model_file("mcunet-5fps")), num_classes=3, head="fp", mode="integer")
    before = copy.deepcopy(net.state_dict())
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 128, 128, generator=generator).sub_(0.5).mul_(255)
    result = search_scheme(
        net,
        rule=RULE,
        train_batches=[(x, torch.arange(4) % 3)],
        val_batches=[(x, torch.arange(4) % 3)],
        budget_kb=7,
        settings=SearchSettings(
            ratios=[0.125],
            bias_step=4,
            probe=probe_settings(train_images=4, val_images=4, batch_size=4, steps=1, lr=1e-3),
            measure="loss",
            solver=Exact(),
        ),
        cache=tmp_path / "probes",
        progress=lambda names: names,
    )
    assert result.memory.kb <= 7
    assert (list(result.contributions.bias), [conv for conv, _ in result.contributions.weight]) == ([2], [40])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
