"""A small run on the bundled digits."""

from pathlib import Path
from typing import Any

from omegaconf import open_dict

from octo_exp.runs.run import run
from tests.configs import composed

# Without a machine: its cost figure takes longer than the training.
SMALL = (
    "model=simplecnn",
    "model.width=4",
    "model.hidden=12",
    "logger=csv",
    "hw=[]",
    "trainer.log_every_n_steps=1",
    "data.limit_train=200",
    "data.limit_test=60",
    "data.epochs=2",
)
OCTO = (*SMALL, "quant=octo", "hw=[systolic_16x16,tpu_v1]")


def go(folder: Path, *overrides: str, **nodes: Any) -> dict[str, Any]:
    cfg = composed(*overrides, save_dir=folder)
    with open_dict(cfg):
        # Nodes name callbacks of the tests.
        cfg.trust = ["tests"]
        for key, value in nodes.items():
            cfg[key].update(value)
    return run(cfg)
