"""A float net that starts from a run with compensation (LAC): the run's constants are folded into its biases."""

import copy
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import nn

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.config.trust import check_targets
from octo_exp.data.protocol import DataModule
from octo_exp.nn.convert import convert
from octo_exp.nn.fold import folded
from octo_exp.nn.guard import Verdict
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import Scheme
from octo_exp.runs.assemble.construct import construct
from octo_exp.runs.folder import CONFIG
from octo_exp.runs.weights import Given, check_same_network, speed_guard_of


def start_compensated(cfg: DictConfig, weights: Given, net: nn.Module, datamodule: DataModule) -> nn.Module:
    """Return `net` with the weights of a run whose scheme compensates, and its constants in the biases, as an export.

    The constants depend on the run's quantisers, hence on its scheme, which the run's config.yaml names.

    Args:
        cfg: the config of this run; its `trust` counts for the other's too.
        weights: of the other run.
        net: this run's float net, without lazy layers; changed in place.
        datamodule: gives the shape of an image.

    Raises:
        UserError: the run's config is not beside its checkpoint or names what is not trusted, its net is another one,
            or a compensation is no constant of a channel.

    """
    scheme = _scheme(cfg, weights)
    trained, where = copy.deepcopy(net), f"init_from: {weights.path}"
    kept = speed_guard_of(weights.path, "init_from")
    keep = {} if kept is None else Verdict(**kept).keep
    convert(trained, scheme, impl="torch", clock=Clock(), input_shape=datamodule.input_shape, keep=keep)
    remedy = "give the model= and data= of that run, whose config.yaml and checkpoint must be of one run"
    check_same_network(trained, weights.state, found=where, remedy=remedy)
    trained.load_state_dict(weights.state)
    try:
        return folded(trained, net)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _scheme(cfg: DictConfig, weights: Given) -> Scheme:
    """Return the scheme of the run whose checkpoint it is; UserError where nothing says it."""
    places = [folder / CONFIG for folder in (weights.path.parent, weights.path.parent.parent)]
    config = next((place for place in places if place.is_file()), None)
    if config is None:
        raise UserError(
            f"init_from: {weights.path} was trained with compensation (LAC), and the config.yaml of its run, which is "
            "needed to fold it, is not beside it; give the folder of the run"
        )
    node = _quant_of(config)
    try:
        check_targets({"quant": node}, trust=cfg.get("trust") or [])
        scheme = construct("quant", node)
    except ConfigError as error:
        raise UserError(f"init_from: {config}: {error}") from error
    if not isinstance(scheme, Scheme):
        raise UserError(f"init_from: {config} names no scheme with compensation; give the folder of the run itself")
    return scheme


def _quant_of(config: Path) -> DictConfig:
    try:
        node = OmegaConf.select(OmegaConf.load(config), "quant")
    except Exception as error:
        raise UserError(f"init_from: {config} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(node, DictConfig):
        raise UserError(f"init_from: {config} has no quant; give the folder of a run of train.py")
    return node
