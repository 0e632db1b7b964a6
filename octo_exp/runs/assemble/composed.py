"""Reads of a composed config: plain values, a copy with nodes replaced, the option that was chosen."""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain values, interpolations replaced."""
    container = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in container.items()} if isinstance(container, dict) else {}


def replaced(cfg: DictConfig, **values: Any) -> DictConfig:
    """Return a copy of the config with some of its nodes replaced."""
    copy = cfg.copy()
    with open_dict(copy):
        for key, value in values.items():
            copy[key] = value
    return copy


def choice(group: str, cfg: DictConfig) -> str:
    """Return the option that was chosen for a config group; outside Hydra, the class that the node names."""
    if HydraConfig.initialized():
        return str(HydraConfig.get().runtime.choices[group])
    return str(cfg[group].get("_target_", "?")).rpartition(".")[2]
