"""The library's verbs: int8 layers for anybody's network, in anybody's training loop."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from octo_exp.base.configs import conf_folder
from octo_exp.base.errors import ConfigError, UserError
from octo_exp.facade.shipped import check_option, near, shipped
from octo_exp.kernels.ops import resolve_impl
from octo_exp.nn import convert
from octo_exp.nn.layers import QuantLayer
from octo_exp.nn.steps import StepCounter
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import OWN, Scheme


def scheme(name: str = "octo", **changes: Any) -> Scheme:
    """Return the scheme of conf/quant/<name>.yaml with changes: `scheme("octo", bits=4, g={"rounding": "stochastic"})`.

    Args:
        name: what `quant=` takes.
        changes: fields of the scheme; a mapping changes those of an operand, of `clip` or of `compensation`, a form
            (`octo_exp.quant.lsq.Lsq(...)`) takes that part's place, None leaves it out. clip="gaussian" and
            compensation="affine" are the options of quant/clip and quant/compensation.

    Raises:
        ConfigError: an unknown scheme or field (with the nearest right one), or a value that the scheme refuses.

    """
    check_option("quant", name, what="scheme")
    folder = conf_folder()
    groups = {
        key: value for key, value in changes.items() if isinstance(value, str) and (folder / "quant" / key).is_dir()
    }
    changes = {key: value for key, value in changes.items() if key not in groups}
    try:
        chosen = [f"+quant={name}", *(f"quant/{key}={value}" for key, value in groups.items())]
        node = shipped(*chosen).quant
        forms = {key: value for key, value in changes.items() if dataclasses.is_dataclass(value)}
        # In their places for now, which must be there.
        _change(node, {**changes, **dict.fromkeys(forms)}, "")
        made = instantiate(node, _convert_="all", _partial_=True)(**forms)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise ConfigError(f"scheme {name!r}: {' '.join(str(cause or error).split())}") from error
    if not isinstance(made, Scheme):
        raise ConfigError(f"quant={name} quantises a trained network; a network that trains takes another scheme")
    return made


def _change(node: DictConfig, changes: Mapping[str, Any], prefix: str) -> None:
    """Set fields of a scheme's node; ConfigError for one that it has not."""
    for key, value in changes.items():
        known = [str(name) for name in node if not str(name).startswith("_")]
        if key not in known:
            meant = near(f"{prefix}{key}", [prefix + field for field in known])
            raise ConfigError(f"unknown field '{prefix}{key}' of a scheme: {meant}it has {', '.join(known)}")
        if isinstance(value, Mapping) and OmegaConf.is_dict(node[key]):
            _change(node[key], value, f"{prefix}{key}.")
        elif OmegaConf.is_dict(node[key]) and value is not None and key != "overrides":
            raise ConfigError(f"'{prefix}{key}' has fields: give a mapping of those to change, or None to leave it out")
        elif isinstance(value, Mapping) and key not in ("overrides", *OWN) and "_target_" not in value:
            raise ConfigError(
                f"'{prefix}{key}' is null in this scheme, so its fields cannot be changed; start from one that has it"
            )
        else:
            with open_dict(node):
                node[key] = value


def quantize(
    model: nn.Module,
    scheme: str | Scheme = "octo",
    *,
    impl: str = "auto",
    seed: int = 0,
    input_shape: tuple[int, ...] | None = None,
    **changes: Any,
) -> nn.Module:
    """Quantise a network's convolutions and linear layers, in place, and return it.

    Its parameters, their names, hooks and optimizers stay what they were. In training, forward and both backward GEMMs
    of those layers are computed as the scheme says; what stays float is named in the log. The step that keys all noise
    advances by itself with every training pass and travels in the state dict.

    Args:
        model: float32 weights; on the CPU or a CUDA device.
        scheme: the name of one (`octo_exp.scheme`), or one.
        impl: kernel implementation: auto, torch, triton or reference.
        seed: of stochastic rounding.
        input_shape: (C, H, W) of one image, where layers are lazy or the compensation has parameters per element.
        changes: of the scheme, as `octo_exp.scheme` takes them.

    Raises:
        UserError: nothing in the model can be quantised, or it is quantised already; its device has no kernels; an
            unknown scheme or field.

    """
    if not isinstance(model, nn.Module):
        raise UserError(f"quantize takes a torch.nn.Module, got {type(model).__name__}")
    chosen = resolve(scheme, changes)
    quantized = [name for name, module in model.named_modules() if isinstance(module, QuantLayer)]
    if quantized:
        raise UserError(f"the model is quantised already ({', '.join(quantized[:3])} ...): quantise a float one")
    clock = Clock(seed=seed)
    convert.convert(model, chosen, impl=kernels_for(_device_of(model), impl), clock=clock, input_shape=input_shape)
    if not chosen.is_float:
        StepCounter(model, clock)
    return model


def resolve(given: str | Scheme, changes: Mapping[str, Any]) -> Scheme:
    """Return a scheme that is given, or that of a name with changes."""
    if not isinstance(given, Scheme):
        return scheme(given, **changes)
    if changes:
        raise UserError(f"{', '.join(changes)}: a scheme is changed by octo_exp.scheme(name, ...) before it is given")
    return given


def kernels_for(device: str, impl: str) -> str:
    """Return the kernel implementation on a type of device; UserError where none computes there."""
    if device not in ("cpu", "cuda"):
        raise UserError(f"int8 kernels compute on cpu and cuda, not on {device}: move the model there first")
    return resolve_impl(impl, device)


def _device_of(model: nn.Module) -> str:
    types = sorted({parameter.device.type for parameter in model.parameters()})
    if len(types) > 1:
        raise UserError(f"the model lies on {' and '.join(types)}: move it to one device first")
    return types[0] if types else "cpu"


def parameter_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Return optimizer groups: the model's own parameters at `lr`; without weight decay LAC's, at the scheme's rate.

    What quantisers learn (LSQ's steps) is a group at `lr` without weight decay.
    """
    return [{"lr": lr, **group} for group in convert.parameter_groups(model)]
