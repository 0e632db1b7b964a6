"""What a config is refused for before data are read and before a folder is touched."""

from omegaconf import DictConfig, ListConfig

from octo_exp.base.errors import UserError
from octo_exp.models.build import build_model, is_ours
from octo_exp.quant.scheme import Scheme
from octo_exp.runs.assemble.construct import construct
from octo_exp.runs.assemble.optim import check_optim
from octo_exp.runs.assemble.trainer import check_trainer


def check_settings(cfg: DictConfig) -> None:
    """Make what can be made of a config alone, to no use; its names are trusted.

    Raises:
        UserError: what would start other processes; what a constructor refuses; a test of what was never trained.

    """
    _check_one_process(cfg)
    # The scheme's now, not once a source is trained, which may be under a part of it.
    scheme = construct("quant", cfg.quant)
    check_trainer(cfg)
    check_optim(cfg)
    # What our own networks take, conf/ says; what another's constructor refuses, it alone knows.
    if not is_ours(cfg.model):
        build_model(cfg.model)
    _check_trains(cfg, scheme)


def _check_one_process(cfg: DictConfig) -> None:
    """Refuse what would start other processes, or wait for them for ever."""
    devices = cfg.trainer.get("devices", 1)
    several = (isinstance(devices, int) and devices not in (0, 1)) or (
        isinstance(devices, ListConfig) and len(devices) > 1
    )
    if several or cfg.trainer.get("num_nodes", 1) != 1:
        raise UserError(
            f"trainer.devices={devices}, trainer.num_nodes={cfg.trainer.get('num_nodes', 1)}: the data are in memory "
            "and one process trains; set both to 1"
        )


def _check_trains(cfg: DictConfig, scheme: object) -> None:
    """Refuse to test int8 layers that were never trained: their ranges are what a step has seen."""
    starts = cfg.ckpt is not None or cfg.init_from is not None or cfg.get("resume") is not None or cfg.get("source")
    if not (cfg.train and cfg.test) or starts or not isinstance(scheme, Scheme) or scheme.is_float:
        return
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if cfg.trainer.get(name) == 0:
            raise UserError(
                f"trainer.{name}=0 trains nothing, and int8 layers are tested with the ranges that training has seen; "
                "set test=false, or train a step"
            )
