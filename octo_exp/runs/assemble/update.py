"""What of an int8 graph trains: the update rule of a config, its scheme searched for where a budget is given."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from torch import nn

from octo_exp.base.caches import cache_folder
from octo_exp.base.errors import UserError
from octo_exp.base.files import write_text
from octo_exp.data.protocol import DataModule
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.update.rule import UpdateRule
from octo_exp.runs.assemble.composed import choice

log = logging.getLogger(__name__)

SCHEME_FILE = "scheme.yaml"


def update_rule(cfg: DictConfig, net: nn.Module, datamodule: DataModule) -> UpdateRule | None:
    """Return the rule that `update=` names, or None; with update.budget_kb its scheme is searched for first."""
    # A DictConfig has a method of that name.
    node = cfg.get("update", None)
    if not node:
        return None
    if not isinstance(net, McuNet):
        raise UserError(
            f"update= chooses what of a microcontroller graph trains, and model={choice('model', cfg)} under "
            f"quant={cfg.quant.name} is none; use quant=native or leave update= out"
        )
    rule: UpdateRule = instantiate(node, _convert_="all")
    if rule.budget_kb is None:
        return rule
    # What is only evaluated trains nothing, and has no scheme to be searched for.
    return _searched(cfg, net, datamodule, rule, rule.budget_kb) if cfg.train else None


def what_trains(net: McuNet) -> list[list[Any]]:
    """Return of each convolution whether weights and biases train, and which channels: plain values."""
    updates = [conv.update for conv in net.convs]
    return [[u.train_weight, u.train_bias, None if u.kept is None else u.kept.tolist()] for u in updates]


def _searched(cfg: DictConfig, net: McuNet, datamodule: DataModule, rule: UpdateRule, budget_kb: float) -> UpdateRule:
    """The rule with the best scheme within the budget; the scheme stands in the run's folder as a yaml of its own."""
    from octo_exp.graph.train.update.search import search_scheme

    found = search_scheme(
        net,
        rule=rule,
        train_batches=_normalised(datamodule, datamodule.train_dataloader()),
        val_batches=_normalised(datamodule, datamodule.val_dataloader()),
        budget_kb=budget_kb,
        settings=rule.search,
        cache=cache_folder() / "contributions",
        progress=_bar,
    )
    text = found.yaml(model=choice("model", cfg), base=choice("update", cfg))
    write_text(Path(cfg.save_dir) / SCHEME_FILE, text)
    log.info("scheme found for %g KB:\n%s", budget_kb, text)
    return replace(rule, sparse=found.scheme, budget_kb=None)


def _bar(names: Sequence[str]) -> Iterator[str]:
    """Pass the names of probes on, a bar beside them."""
    with Progress(console=Console(stderr=True, markup=False), transient=True) as progress:
        task = progress.add_task("scheme search", total=len(names))
        for name in names:
            progress.update(task, description=escape(f"scheme search: {name}"))
            yield name
            progress.advance(task)


def _normalised(datamodule: DataModule, loader: Iterable[Any]) -> Iterable[Any]:
    return (datamodule.on_after_batch_transfer(batch, 0) for batch in loader)
