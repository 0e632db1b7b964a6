"""What is exported: the network of a run's last checkpoint with its data, or images beside a graph that is given."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.base.files import expanded
from octo_exp.config.trust import check_targets
from octo_exp.data.protocol import DataModule
from octo_exp.models.build import build_model
from octo_exp.runs.assemble import build_module, replaced
from octo_exp.runs.weights import check_same_network, checkpoint_path, net_state

# What is read of a run's config.
_NEEDED = ("data", "kernel", "model", "optim", "quant", "trainer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A run: its folder, its config, its checkpoint, the trained network and its data, ready to be read."""

    folder: Path
    cfg: DictConfig
    checkpoint: Path
    net: nn.Module
    datamodule: DataModule

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised test images [N, C, S, S] and their labels [N]."""
        for batch in self.datamodule.test_dataloader():
            yield self.datamodule.on_after_batch_transfer(batch, 0)

    def fresh_model(self) -> nn.Module:
        """Return a new network of the run's model, in float."""
        model: nn.Module = build_model(self.cfg.model)
        return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What stands beside a graph that is no run's: batches of images [N, C, S, S], normalised, without labels."""

    images: Sequence[Tensor]
    # The network of a run.
    net: None = None

    def test_batches(self) -> Iterator[tuple[Tensor, None]]:
        """Yield the images, a batch each time."""
        return ((batch, None) for batch in self.images)


def read_run(value: str, *, trust: Sequence[str] = ()) -> Source:
    """Return the trained network of a run folder.

    Args:
        value: the folder.
        trust: packages whose objects its config may name, beside ours. The config's own `trust` does not count: the
            folder may be anybody's.

    Raises:
        UserError: the folder holds no finished run, or its config names what is not trusted; nothing of it was called.

    """
    folder = expanded(value)
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"run={value}: the folder holds no config.yaml; give the folder of a run of train.py")
    cfg = _config(config, value)
    _check_trusted(cfg, trust, value)
    # A run that only evaluates, as one that quantises a trained net anew, keeps its weights where it found them.
    evaluated = None if cfg.get("train", True) else cfg.get("ckpt")
    checkpoint = checkpoint_path("run", value if evaluated is None else evaluated)
    state = net_state(checkpoint, "run")
    # An export computes on the CPU, wherever the run did.
    trainer, kernel = replaced(cfg.trainer, accelerator="cpu"), replaced(cfg.kernel, impl="auto")
    # The checkpoint holds weights and scales: where they came from, and what of them trained, matters no more.
    cfg = replaced(cfg, train=False, ckpt=str(checkpoint), init_from=None, update=None, data=_data_here(cfg.data))
    cfg = replaced(cfg, trainer=trainer, kernel=kernel)
    # Interpolations may say something else now.
    _check_trusted(cfg, trust, value)
    try:
        datamodule: DataModule = instantiate(cfg.data)
        datamodule.setup()
        net = build_module(cfg, datamodule).module.net
    except InstantiationException as error:
        # Hydra wraps what a setting is refused with.
        if isinstance(error.__cause__, UserError):
            raise UserError(f"run={value}: {error.__cause__}") from error
        raise
    remedy = "give a folder whose config.yaml and checkpoint are of one run"
    check_same_network(net, state, found=f"run={value}: {checkpoint}", remedy=remedy)
    net.load_state_dict(state)
    return Source(folder=folder, cfg=cfg, checkpoint=checkpoint, net=net.eval(), datamodule=datamodule)


def _config(path: Path, value: str) -> DictConfig:
    """Return a run's config; UserError for a file that is none."""
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:
        raise UserError(f"run={value}: config.yaml cannot be read ({str(error).splitlines()[0]})") from error
    missing = [key for key in _NEEDED if not isinstance(cfg, DictConfig) or key not in cfg]
    if missing or not isinstance(cfg, DictConfig):
        raise UserError(f"run={value}: config.yaml has no {missing[0]}; give the folder of a run of train.py")
    return cfg


def _check_trusted(cfg: DictConfig, trust: Sequence[str], value: str) -> None:
    try:
        check_targets(cfg, trust=trust)
    except ConfigError as error:
        raise UserError(f"run={value}: config.yaml: {error}") from error


def _data_here(data: DictConfig) -> DictConfig:
    """A run says where its data lay; where they do not lie there now, OCTO_DATA_DIR is looked into."""
    here = os.environ.get("OCTO_DATA_DIR")
    if not here or not data.folder or (data.root and (expanded(data.root) / data.folder).is_dir()):
        return data
    return replaced(data, root=here)
