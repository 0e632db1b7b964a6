"""Prices the training step on every hardware profile, once, before the first batch."""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import nn

from octo_exp.errors import UserError
from octo_exp.hw import CostReport, CostRow, HardwareProfile, Workload, training_step_cost
from octo_exp.trace import trace

_ROW_FIELDS = tuple(field.name for field in dataclasses.fields(CostRow))
_COLUMNS = ("profile", *_ROW_FIELDS, "convention", "grad_input_form", "batch_size")

Cell = int | float | str


class CostCallback(Callback):
    """Logs compute cycles of the step's GEMMs; costs nothing during training, for shapes do not change.

    Reads `pl_module.net` and, of `trainer.datamodule`, `input_shape` (one input, e.g. (C, H, W)) and `batch_size`.
    Writes `cost.csv` (a row for each profile, layer and role) into `trainer.default_root_dir`, the totals into every
    logger (W&B: the run's summary and the table `cost/layers`; others: hyperparameters), and keeps both in `results`
    and `reports`.

    Log keys, all compute cycles of one step without stalls unless the unit says otherwise:

    - cost/<profile>/forward_cycles, grad_input_cycles, grad_weight_cycles, train_step_cycles
    - cost/<profile>/train_step_ms: milliseconds at the profile's clock
    - cost/convention, cost/grad_input_form, cost/batch_size: what the figures assume

    Args:
        profiles: name in the log keys -> machine.
        convention: scalesim | true, see `octo_exp.hw.cycles`.
        grad_input_form: col2im | im2col, see `octo_exp.trace`.

    """

    def __init__(self, *, profiles: Mapping[str, HardwareProfile], convention: str, grad_input_form: str) -> None:
        self.profiles = dict(profiles)
        self.convention = convention
        self.grad_input_form = grad_input_form
        self.reports: dict[str, CostReport] = {}
        self.results: dict[str, Cell] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Price the step that is about to be trained."""
        self._price(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Price the step of a network that is only evaluated."""
        if not self.results:
            self._price(trainer, pl_module)

    def _price(self, trainer: Trainer, pl_module: LightningModule) -> None:
        workload = _traced(trainer, pl_module, self.grad_input_form)
        self.reports = {
            name: training_step_cost(workload, profile, convention=self.convention)
            for name, profile in self.profiles.items()
        }
        self.results = _flat(self.reports, self.convention, workload)
        if trainer.is_global_zero:
            table = [row for name, report in self.reports.items() for row in _table_rows(name, report)]
            _write_csv(Path(trainer.default_root_dir) / "cost.csv", table)
            _log(trainer, self.results, table)


def _traced(trainer: Trainer, pl_module: LightningModule, grad_input_form: str) -> Workload:
    net = getattr(pl_module, "net", None)
    if not isinstance(net, nn.Module):
        raise UserError(f"cost: {type(pl_module).__name__} has no module 'net' to price; remove the cost callback")
    datamodule: Any = getattr(trainer, "datamodule", None)
    for name in ("input_shape", "batch_size"):
        if not hasattr(datamodule, name):
            raise UserError(
                f"cost: the trainer's datamodule has no {name!r}; pass one that has, or remove the callback"
            )
    return trace(net, tuple(datamodule.input_shape), batch_size=datamodule.batch_size, grad_input_form=grad_input_form)


def _flat(reports: Mapping[str, CostReport], convention: str, workload: Workload) -> dict[str, Cell]:
    results: dict[str, Cell] = {
        f"cost/{name}/{total}": value for name, report in reports.items() for total, value in report.totals().items()
    }
    results["cost/convention"] = convention
    results["cost/grad_input_form"] = workload.grad_input_form
    results["cost/batch_size"] = workload.batch_size
    return results


def _table_rows(profile: str, report: CostReport) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for row in report.rows:
        priced: list[Cell] = [getattr(row, name) for name in _ROW_FIELDS]
        rows.append([profile, *priced, report.convention, report.grad_input_form, report.batch_size])
    return rows


def _write_csv(path: Path, table: list[list[Cell]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(table)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another output folder") from error


def _log(trainer: Trainer, results: Mapping[str, Cell], table: list[list[Cell]]) -> None:
    numbers = {key: value for key, value in results.items() if not isinstance(value, str)}
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # The summary is what sweeps plot against each other; a history of one constant would be noise.
            logger.experiment.summary.update(dict(results))
            logger.log_table(key="cost/layers", columns=list(_COLUMNS), data=table)
        else:
            logger.log_hyperparams(numbers)
