"""What a training step of anybody's network computes, and what that costs on a machine, in one call each."""

from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from octo_exp import tracing
from octo_exp.base.errors import UserError
from octo_exp.facade.shipped import check_option, shipped
from octo_exp.hw import CostReport, EnergyTable, HardwareProfile, training_step_cost
from octo_exp.tracing import SGD, optimizer_cost
from octo_exp.workload import Workload


def trace(
    model: nn.Module, input_shape: Sequence[int], *, batch_size: int, optimizer: Optimizer | None = None
) -> Workload:
    """Return what one training step computes and keeps: its GEMMs, the work beside them, its memory; nothing is run.

    Args:
        model: any module whose products lie in `nn.Conv2d`, `nn.Linear` and modules that state their own account;
            quantised or not. See `octo_exp.tracing.trace`, which also takes frozen layers, sparse updates and autocast.
        input_shape: of one input without the batch, e.g. (C, H, W).
        batch_size: inputs in a step.
        optimizer: what updates the parameters; plain SGD unless given.

    Raises:
        UserError: a layer or an operation that is not counted, an input that does not fit.

    """
    if not isinstance(model, nn.Module):
        raise UserError(f"trace takes a torch.nn.Module, got {type(model).__name__}")
    cost = SGD if optimizer is None else optimizer_cost(optimizer)
    form = str(_how().grad_input_form)
    return tracing.trace(model, input_shape, batch_size=batch_size, grad_input_form=form, optimizer=cost)


def price(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    batch_size: int,
    hw: str | HardwareProfile,
    energy: str | EnergyTable | None = None,
    optimizer: Optimizer | None = None,
) -> CostReport:
    """Return cycles, stalls, traffic and energy of one training step, by layer and GEMM: no data, nothing is run.

    Args:
        model: any module, quantised or not; see `octo_exp.trace` for what it may hold.
        input_shape: of one input without the batch, e.g. (C, H, W).
        batch_size: inputs in a step.
        hw: what `hw=` names, or a profile.
        energy: what `energy=` names, a table, or None: no energy then.
        optimizer: what updates the parameters; plain SGD unless given.

    Raises:
        UserError: an unknown machine or table (with the nearest right one), a layer that is not counted, a width that
            the machine does not multiply.

    """
    if not isinstance(model, nn.Module):
        raise UserError(f"price takes a torch.nn.Module, got {type(model).__name__}")
    how = _how()
    workload = trace(model, input_shape, batch_size=batch_size, optimizer=optimizer)
    table = _table(energy) if isinstance(energy, str) else energy
    profile = _profile(hw) if isinstance(hw, str) else hw
    return training_step_cost(workload, profile, convention=str(how.convention), energy=table)


def _how() -> DictConfig:
    """Return the settings of a run's own accounting."""
    how: DictConfig = shipped("+callbacks=default").callbacks.cost
    return how


def _profile(name: str) -> HardwareProfile:
    check_option("hw", name)
    profile: HardwareProfile = instantiate(shipped(f"+hw={name}").hw[name], _convert_="all")
    return profile


def _table(name: str) -> EnergyTable:
    check_option("energy", name)
    table: EnergyTable = instantiate(shipped(f"+energy={name}").energy, _convert_="all")
    return table
