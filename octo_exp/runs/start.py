"""What a run starts from: the command, the config that it means, and the content behind it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from octo_exp.base.errors import UserError
from octo_exp.base.files import expanded, write_text
from octo_exp.config import identity
from octo_exp.config.resumed import given_beside, key_of, taken
from octo_exp.data.protocol import DataModule
from octo_exp.runs.assemble import replaced, resolved
from octo_exp.runs.folder import CONFIG, RefusedError, checkpoint_path, newest
from octo_exp.runs.weights import given as given_weights
from octo_exp.runs.weights import net_state, state_sha256

AUTO = "auto"
# Where a file or a run lies is a matter of where the command was typed.
_PATHS = ("ckpt", "init_from")


def config_of(cfg: DictConfig) -> DictConfig:
    """The config that a command means: with resume=<folder> that folder's own, with what may change as it was given.

    Raises:
        UserError: resume= and ckpt= together; a folder that holds no run, or whose config cannot be read.

    """
    if cfg.get("resume") is None:
        return _absolute(cfg)
    if cfg.resume == AUTO:
        if cfg.ckpt is not None:
            raise UserError("resume= and ckpt= both say what to go on from; give one of them")
        return _absolute(cfg)
    folder = expanded(str(cfg.resume))
    own, given = _read(folder), resolved(cfg)
    command = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    beside = given_beside(command)
    # Whose objects may be named is the command's to say: the folder may be anybody's.
    own = replaced(own, trust=given.get("trust", []))
    own = replaced(own, **{key: given[key] for key in ("hw", "energy", "logger") if key in beside})
    for key, value in taken(command, given):
        if identity.may_change(key):
            OmegaConf.update(own, key, value, force_add=True)
    # A folder may have been moved: its files are where it is now.
    place = str(folder.absolute())
    was = str(own.save_dir)
    return _moved(replaced(own, resume=AUTO, save_dir=place), was, place)


def _read(folder: Path) -> DictConfig:
    if not folder.is_dir():
        raise RefusedError(f"resume={folder}: there is no such folder; give a run's folder, or resume=auto")
    if not (folder / CONFIG).is_file():
        raise RefusedError(f"resume={folder}: the folder holds no {CONFIG}; give the folder of a run of train.py")
    try:
        own = OmegaConf.load(folder / CONFIG)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RefusedError(f"resume={folder}: {CONFIG} cannot be read ({reason}); copy the folder again") from error
    nodes = ("data", "model", "quant", "trainer", "optim", "kernel")
    has_nodes = isinstance(own, DictConfig) and all(isinstance(own.get(key), DictConfig) for key in nodes)
    if not (isinstance(own, DictConfig) and has_nodes and "seed" in own and "save_dir" in own):
        raise RefusedError(f"resume={folder}: its {CONFIG} is not that of a run; copy the folder again")
    return own


def _moved(cfg: DictConfig, was: str, now: str) -> DictConfig:
    """Return the config with paths into the run's folder as that lies now."""
    for key, value in list(identity.flat(resolved(cfg))):
        if isinstance(value, str) and value.startswith(f"{was}/") and was != now:
            OmegaConf.update(cfg, key, now + value.removeprefix(was))
        if isinstance(value, str) and value == was and was != now:
            OmegaConf.update(cfg, key, now)
    return cfg


def _absolute(cfg: DictConfig) -> DictConfig:
    """Return the config with what it starts from named from the root: who goes on may stand elsewhere."""
    given = {key: cfg.get(key) for key in _PATHS if cfg.get(key) is not None}
    # Not the folder that hydra.job.chdir has changed to.
    base = Path(HydraConfig.get().runtime.cwd) if HydraConfig.initialized() else Path.cwd()
    return replaced(cfg, **{key: str(base / expanded(str(value))) for key, value in given.items()})


def identity_of(cfg: DictConfig, datamodule: DataModule, source: Mapping[str, Any] | None) -> dict[str, Any]:
    """A run's identity, the content of what it starts from included.

    Args:
        cfg: of the run.
        datamodule: of the run; `content` gives the hash of its data, where it has that.
        source: the identity of the run whose weights it starts from, if that is made for it.

    Raises:
        UserError: what it starts from is not there, or cannot be read.

    """
    inputs = {"data": datamodule.content()} if hasattr(datamodule, "content") else {}
    if source is not None:
        inputs["source"] = source["fingerprint"]
    known = _known_inputs(cfg)
    for key in _PATHS:
        if cfg.get(key) is not None and not (key == "ckpt" and _is_own(cfg)):
            gone = key in known and not Path(str(cfg[key])).exists()
            inputs[key] = known[key] if gone else state_sha256(_weights(key, str(cfg[key])))
    path = OmegaConf.select(cfg, "model.path", default=None)
    if path is not None and Path(str(path)).is_file():
        inputs["model"] = hashlib.sha256(Path(str(path)).read_bytes()).hexdigest()
    return identity.identity(resolved(cfg), inputs)


def _weights(key: str, value: str) -> dict[str, Any]:
    return given_weights(value).state if key == "init_from" else net_state(checkpoint_path(key, value), key)


def _known_inputs(cfg: DictConfig) -> dict[str, str]:
    """What a run that goes on started from, as its checkpoints say: that need not be there any more."""
    if cfg.get("resume") is None:
        return {}
    found, _ = newest(Path(cfg.save_dir), "resume")
    return {} if found is None else dict(found.run["inputs"])


def _is_own(cfg: DictConfig) -> bool:
    """Whether a run goes on from a checkpoint in its own folder: it starts from nothing then."""
    return bool(cfg.train) and is_inside(cfg.ckpt, Path(cfg.save_dir))


def is_inside(place: str, folder: Path) -> bool:
    """Whether a file or folder is, or lies in, a folder."""
    path = expanded(place).resolve()
    return folder.resolve() in (path, *path.parents)


def is_sweep() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def settings() -> list[str]:
    """Return what the command gave; outside of Hydra there is no command. To go on is no property of the run."""
    given = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return [word for word in given if not word.lstrip("+").startswith("resume=")]


def given_keys() -> list[str]:
    """Return the keys that the command gave; outside of Hydra there is none."""
    return [key_of(word) for word in settings()]


def write_command(folder: Path) -> None:
    """Note what was asked for, where Hydra would have: it does so before anybody knows whose folder it is."""
    if not HydraConfig.initialized():
        return
    place = folder / ".hydra"
    place.mkdir(exist_ok=True)
    write_text(place / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(settings())))
    write_text(place / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": HydraConfig.get()})))
