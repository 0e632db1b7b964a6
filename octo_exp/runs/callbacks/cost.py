"""Prices the training step on every hardware profile, once, before the first batch."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from octo_exp.base.errors import UserError
from octo_exp.base.files import make_folder_of, write_csv
from octo_exp.hw import (
    CONVENTIONS,
    CostReport,
    CostRow,
    EnergyTable,
    HardwareProfile,
    MemoryReport,
    VectorRow,
    step_memory,
    training_step_cost,
)
from octo_exp.runs.cost_plots import cost_table, save_cost_figure, text_of
from octo_exp.runs.lit import network_of
from octo_exp.tracing import SGD, optimizer_cost, trace
from octo_exp.workload import GRAD_INPUT_FORMS, Workload

log = logging.getLogger(__name__)

_ASSUMPTIONS = ("convention", "grad_input_form", "batch_size")
MIB = 2**20

Cell = int | float | str | None


class CostCallback(Callback):
    """Logs what the step costs; costs nothing during training, for shapes do not change.

    Reads `pl_module.net`, the trainer's optimizer and precision and, of `trainer.datamodule`, `input_shape` (one input,
    e.g. (C, H, W)) and `batch_size`. Writes into `trainer.default_root_dir` cost.csv (a row for each profile, layer and
    role), cost_vector.csv (the work beside the GEMMs) and cost.png; a table for each profile into the log; the totals
    into every logger (W&B: the run's summary, the table `cost/layers` and the picture `cost/bars`; others:
    hyperparameters). Keeps them in `results` and `reports`.

    Log keys, of one training step:

    - cost/<profile>/forward_cycles, grad_input_cycles, grad_weight_cycles, train_step_cycles: compute cycles of GEMMs
    - cost/<profile>/vector_cycles: the vector unit's own work
    - cost/<profile>/stall_cycles: waiting for off-chip memory; total_cycles: all of these; total_ms: the same
    - cost/<profile>/utilization: MACs / (train_step_cycles * PEs); dram_mib: off-chip traffic; energy_uj
    - a machine without a vector unit has no vector_cycles, total_cycles, total_ms and energy_uj
    - cost/peak_memory_mib, cost/peak_<kind>_mib, cost/kept_for_backward_mib: by liveness, the same for every profile
    - cost/convention, grad_input_form, batch_size, optimizer, energy_table: what the figures assume

    Args:
        profiles: name in the log keys -> machine.
        convention: exact | scalesim, see `octo_exp.hw.cycles`.
        grad_input_form: col2im | im2col, see `octo_exp.tracing`.
        energy: the table that prices MACs and bytes, or None.

    """

    def __init__(
        self,
        *,
        profiles: Mapping[str, HardwareProfile],
        convention: str,
        grad_input_form: str,
        energy: EnergyTable | None,
    ) -> None:
        for name, value, known in (
            ("convention", convention, CONVENTIONS),
            ("grad_input_form", grad_input_form, GRAD_INPUT_FORMS),
        ):
            if value not in known:
                raise UserError(f"callbacks.cost.{name}={value} is unknown; choose one of {', '.join(known)}")
        self.profiles = dict(profiles)
        self.convention = convention
        self.grad_input_form = grad_input_form
        self.energy = energy
        self.reports: dict[str, CostReport] = {}
        self.memory: MemoryReport | None = None
        self.results: dict[str, Cell] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Price the step that is about to be trained."""
        self._price(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Price the step of a network that is only evaluated, as if plain SGD trained it."""
        if not self.results:
            self._price(trainer, pl_module)

    def _price(self, trainer: Trainer, pl_module: LightningModule) -> None:
        workload = _traced(trainer, pl_module, self.grad_input_form)
        self.reports = {
            name: training_step_cost(workload, profile, convention=self.convention, energy=self.energy)
            for name, profile in self.profiles.items()
        }
        self.memory = step_memory(workload.buffers)
        self.results = self._flat(workload, trainer)
        if trainer.is_global_zero:
            self._write(trainer)

    def _flat(self, workload: Workload, trainer: Trainer) -> dict[str, Cell]:
        results: dict[str, Cell] = {
            f"cost/{name}/{total}": value
            for name, report in self.reports.items()
            for total, value in report.totals().items()
        }
        results |= {} if self.memory is None else _memory_results(self.memory)
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        results["cost/convention"] = self.convention
        results["cost/grad_input_form"] = workload.grad_input_form
        results["cost/batch_size"] = workload.batch_size
        results["cost/optimizer"] = "SGD" if optimizer is None else type(optimizer).__name__
        results["cost/energy_table"] = None if self.energy is None else self.energy.name
        return results

    def _write(self, trainer: Trainer) -> None:
        folder = Path(trainer.default_root_dir)
        columns, table = _table(CostRow, {name: report.rows for name, report in self.reports.items()}, self.reports)
        _write_csv(folder / "cost.csv", columns, table)
        beside = _table(VectorRow, {name: report.vector_rows for name, report in self.reports.items()}, self.reports)
        _write_csv(folder / "cost_vector.csv", *beside)
        for report in self.reports.values():
            log.info("\n%s", text_of(cost_table(report)))
        picture = folder / "cost.png"
        if self.reports:
            save_cost_figure(picture, self.reports, self.memory)
        numbers = {key: value for key, value in self.results.items() if isinstance(value, int | float)}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                # The summary is what sweeps plot against each other; a history of one constant would be noise.
                logger.experiment.summary.update(self.results)
                logger.log_table(key="cost/layers", columns=columns, data=table)
                if self.reports:
                    logger.log_image(key="cost/bars", images=[str(picture)])
            else:
                logger.log_hyperparams(numbers)


def _traced(trainer: Trainer, pl_module: LightningModule, grad_input_form: str) -> Workload:
    datamodule: Any = getattr(trainer, "datamodule", None)
    for name in ("input_shape", "batch_size"):
        if not hasattr(datamodule, name):
            raise UserError(
                f"cost: the trainer's datamodule has no {name!r}; pass one that has, or remove the callback"
            )
    return trace(
        network_of(pl_module, "cost"),
        tuple(datamodule.input_shape),
        batch_size=datamodule.batch_size,
        grad_input_form=grad_input_form,
        optimizer=optimizer_cost(trainer.optimizers[0]) if trainer.optimizers else SGD,
        autocast=str(trainer.precision).endswith("-mixed"),
    )


def _memory_results(memory: MemoryReport) -> dict[str, Cell]:
    found: dict[str, Cell] = {"cost/peak_memory_mib": memory.peak_bytes / MIB}
    found |= {f"cost/peak_{kind}_mib": size / MIB for kind, size in memory.peak_by_kind.items()}
    return {**found, "cost/kept_for_backward_mib": memory.kept_bytes / MIB}


def _table(
    kind: type[CostRow] | type[VectorRow],
    rows: Mapping[str, Sequence[CostRow] | Sequence[VectorRow]],
    reports: Mapping[str, CostReport],
) -> tuple[list[str], list[list[Cell]]]:
    """(columns, a line for each profile and row): the row's own fields, and what its figures assume."""
    names = [field.name for field in dataclasses.fields(kind)]
    table = [
        [profile, *(getattr(row, name) for name in names), *(getattr(reports[profile], name) for name in _ASSUMPTIONS)]
        for profile, found in rows.items()
        for row in found
    ]
    return ["profile", *names, *_ASSUMPTIONS], table


def _write_csv(path: Path, columns: Sequence[str], table: Sequence[Sequence[Cell]]) -> None:
    remedy = "choose another output folder"
    make_folder_of(path, remedy=remedy)
    write_csv(path, [columns, *table], remedy=remedy)
