"""Weights of a run's checkpoint: start a net from them, and name final weights by a hash."""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.runs.checkpoint import net_of, read

log = logging.getLogger(__name__)


def net_state(path: Path, key: str) -> dict[str, Tensor]:
    """Return the net's state dict of a checkpoint; UserError naming the file where it cannot be read."""
    state = net_of(read(path, key))
    if not state:
        raise UserError(f"{key}: {path} holds no network; give a checkpoint written by train.py")
    return state


def speed_guard_of(path: Path, key: str) -> dict[str, Any] | None:
    """Return the verdict of the speed guard that made a checkpoint's net, plain values; None where there was none.

    UserError as for `net_state`.
    """
    return read(path, key).get("speed_guard")


def start_from(net: nn.Module, state: dict[str, Tensor], *, where: str) -> list[str]:
    """Load another run's weights into `net`; return the parameters left as they are: the head, if classes differ.

    Ranges of quantisers belong to the data they were seen on and are left out; compensations (LAC) are taken
    where both nets have them, and a warning says where they are lost. UserError where anything but the head differs in
    shape or is missing.
    """
    own = net.state_dict()
    head = _head(net)
    fresh = _fresh_head({k: v for k, v in own.items() if k.startswith(head)}, state, head, where)
    loaded: dict[str, Tensor] = {}
    for name, value in own.items():
        if name in fresh or "quantizer_" in name:
            continue
        if "compensator." in name and _unfit(state.get(name), value):
            continue
        if name not in state:
            raise UserError(
                f"init_from: {where} has no {name!r}: it is another model or scheme; choose the one it was made with"
            )
        if state[name].is_floating_point() != value.is_floating_point():
            raise UserError(f"init_from: {where} holds {state[name].dtype} for {name!r}, which is {value.dtype} here")
        if _unfit(state[name], value):
            raise UserError(_misfit(name, state[name], value, where))
        loaded[name] = state[name]
    net.load_state_dict(loaded, strict=False)
    if fresh:
        log.warning("init_from: the classes differ, so the head (%s) starts anew", head.rstrip("."))
    lost = _compensated(state) - _compensated(loaded)
    if fresh:
        lost -= _compensated(name for name in state if name.startswith(head))
    if lost:
        log.warning(
            "init_from: the compensation (LAC) of %d layers in %s is left out, and the weights alone are trained on; "
            "give that run's quant= to keep it",
            len(lost),
            where,
        )
    return fresh


def check_no_compensation(state: dict[str, Tensor], *, where: str, quant: str) -> None:
    """UserError for a net with compensation (LAC), where its weights alone would be quantised as they are."""
    if is_compensated(state):
        raise UserError(
            f"init_from: {where} was trained with compensation (LAC), which quant={quant} leaves out; quantise it with "
            "octo export, which folds it into the biases"
        )


def is_compensated(state: dict[str, Tensor]) -> bool:
    """Whether a state dict is of a net with compensation (LAC)."""
    return bool(_compensated(state))


def _compensated(names: Iterable[str]) -> set[str]:
    """Layers with a compensation, by the names of a state dict."""
    return {name.partition(".compensator.")[0] for name in names if ".compensator." in name}


def _fresh_head(own: dict[str, Tensor], state: dict[str, Tensor], head: str, where: str) -> list[str]:
    """Names of a head whose classes differ from the other run's: all of it; UserError for a head of another kind."""
    theirs = {name: value for name, value in state.items() if name.startswith(head)}
    if not theirs:
        return []
    ours, other = (next(len(v) for k, v in d.items() if k.endswith("weight")) for d in (own, theirs))
    if ours != other:
        return [name for name in own if "quantizer_" not in name and "compensator." not in name]
    if set(own) - set(theirs) and not any("compensator." in name or "quantizer_" in name for name in own):
        kind = "fp" if f"{head}linear.weight" in theirs else "quantized or original"
        raise UserError(f"init_from: {where} has a head of another kind; set quant.head={kind}")
    return []


def _misfit(name: str, theirs: Tensor, ours: Tensor, where: str) -> str:
    channels = theirs.dim() == 4 and (theirs.shape[0], theirs.shape[2:]) == (ours.shape[0], ours.shape[2:])
    remedy = "set data.channels to the source's" if channels else "it is another model: choose the one it was made with"
    return f"init_from: {name!r} is {tuple(theirs.shape)} in {where} and {tuple(ours.shape)} here; {remedy}"


def _unfit(theirs: Tensor | None, ours: Tensor) -> bool:
    return theirs is None or theirs.shape != ours.shape


def _head(net: nn.Module) -> str:
    """Return the beginning of the names of the head's tensors: of `net.head`, else of the last layer."""
    if isinstance(getattr(net, "head", None), nn.Module):
        return "head."
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return f"{layers[-1]}."


def check_same_network(net: nn.Module, state: dict[str, Tensor], *, found: str, remedy: str) -> None:
    """UserError where a checkpoint was not written by this configuration's network; found: the setting and the file.

    Names, shapes and types must be equal: integers would be copied into float weights without a word.
    """
    own = {name: (tuple(value.shape), value.dtype) for name, value in net.state_dict().items()}
    theirs = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
    different = sorted({name for name in {*own, *theirs} if own.get(name) != theirs.get(name)})
    if not different:
        return
    name = different[0]
    if name in own and name in theirs and own[name][0] == theirs[name][0]:
        raise UserError(f"{found} holds {theirs[name][1]} for {name!r}, which is {own[name][1]} here; {remedy}")
    raise UserError(f"{found} was made by another model, scheme or data set: it differs in {name!r}; {remedy}")


def weights_sha256(net: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and bytes of the state dict, in the order of names."""
    return state_sha256(net.state_dict())


def state_sha256(state: dict[str, Tensor]) -> str:
    """The same of a state dict, as a checkpoint holds it."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        # As bytes: numpy knows no bfloat16.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
