"""What init_from= may name: a run, a checkpoint of one, or a file of weights that another program wrote."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.runs.checkpoint import load, net_of
from octo_exp.runs.folder import checkpoint_path
from octo_exp.runs.weights.of_run import start_from

log = logging.getLogger(__name__)

_KEY = "init_from"
# Under which other programs keep a state dict, beside an optimizer's.
_HOLDERS = ("state_dict", "model_state_dict", "model")
# What wrappers put before each name: DataParallel, torch.compile, a LightningModule of somebody's.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Tensors by name, and the file they are from. of_run: whether a run of train.py wrote it."""

    state: dict[str, Tensor]
    path: Path
    of_run: bool

    def start(self, net: nn.Module) -> list[str]:
        """Load them into `net`; return the names of the tensors left as they are.

        A run's weights must fit, as `start_from` says. Of another program's file what fits in name and shape is taken,
        and a warning tells what does not.

        Raises:
            UserError: a run's weights do not fit, or nothing of the file does.

        """
        if self.of_run:
            return start_from(net, self.state, where=str(self.path))
        own = {name: value for name, value in net.state_dict().items() if not _is_ranges(name)}
        fit = {name: self.state[name] for name, value in own.items() if _fits(self.state.get(name), value)}
        if not any(value.is_floating_point() for value in fit.values()):
            raise UserError(
                f"{_KEY}: nothing in {self.path} fits this model: {_first(self.state)} there, {_first(own)} here; "
                "rename its tensors, or choose the model it is of"
            )
        net.load_state_dict(fit, strict=False)
        fresh = [name for name in own if name not in fit]
        log.info("%s: taken from %s: %s", _KEY, self.path, ", ".join(fit))
        unused = [name for name in self.state if name not in fit]
        if fresh or unused:
            log.warning(
                "%s: %d of %d tensors are taken from %s; start anew: %s; not used: %s",
                *(_KEY, len(fit), len(own), self.path, _listed(fresh), _listed(unused)),
            )
        return fresh


def given(value: str) -> Given:
    """Return the weights that init_from= names: a run's folder, or a file.

    A file is a checkpoint of train.py, .safetensors, or what torch.save wrote of a state dict, alone or under one of
    `_HOLDERS`; the names may have one of `_WRAPPERS` before them.

    Raises:
        UserError: there is no such file, it is damaged, or holds no weights.

    """
    path = checkpoint_path(_KEY, value)
    content = _safetensors(path) if path.suffix == ".safetensors" else load(path, _KEY, old_format=True)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict) and (net := net_of(content)):
        return Given(state=net, path=path, of_run=True)
    found = next((state for state in (content, *_held(content)) if _is_state(state)), None)
    if found is None:
        raise UserError(f"{_KEY}: {path} holds no network; give a run's checkpoint, or a state dict of its tensors")
    return Given(state=_unwrapped(dict(found)), path=path, of_run=False)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{_KEY}: {path} is not a whole .safetensors file ({error}); copy it again") from error


def _held(content: Any) -> list[Any]:
    return [content.get(key) for key in _HOLDERS] if isinstance(content, Mapping) else []


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            return _unwrapped({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def _is_ranges(name: str) -> bool:
    return "quantizer_" in name or "compensator." in name


def _fits(theirs: Tensor | None, ours: Tensor) -> bool:
    if theirs is None or theirs.shape != ours.shape:
        return False
    return theirs.is_floating_point() == ours.is_floating_point()


def _first(state: Mapping[str, Tensor]) -> str:
    name, value = next(iter(state.items()))
    return f"{name} {tuple(value.shape)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more or "none"
