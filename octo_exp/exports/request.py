"""What the command line of an export asks for, checked before anything heavy is imported."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from octo_exp.base.configs import conf_folder
from octo_exp.base.errors import ConfigError, UserError
from octo_exp.base.files import expanded
from octo_exp.config.trust import check_targets, packages_of
from octo_exp.exports.formats import FORMATS
from octo_exp.hw.profile import HardwareProfile

CONF = conf_folder()
_KEYS = ("format", "run", "out", "hw", "trust")
# Words of earlier versions.
_FORMER = {"output": "out"}
# Formats that ask for a device: whether it has room, and what it takes.
_ON_DEVICES = ("c", "report")
_USAGE = (
    f"write format=<{'|'.join(FORMATS)}> run=<folder> [out=FILE] [hw=<profile>] [calibration.images=256] "
    "[trust=<package>]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A format, a run's folder, where the file goes (None: into that folder), how to quantise, for which device.

    calibrates: whether any of the calibration was given. trust: packages that the run's config may name, beside ours.
    """

    format: str
    run: str
    out: str | None
    calibration: Mapping[str, Any]
    calibrates: bool
    profile: HardwareProfile | None
    trust: tuple[str, ...]

    def destination(self, suffix: str) -> Path:
        """Return the file to write, or the folder of a format without suffix; UserError where out= can be none."""
        run = expanded(self.run)
        name = f"{run.resolve().name}{suffix or '_' + self.format}"
        if self.out is None:
            return run / "export" / name
        path = expanded(self.out)
        if suffix and (path.is_dir() or self.out.endswith("/")):
            raise UserError(f"out={path} is a folder; give a file, such as out={path / name}")
        if path.suffix != suffix and suffix:
            raise UserError(f"out={path}: format={self.format} writes {suffix}; give out={path.stem}{suffix}")
        above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():
            raise UserError(f"out={path} cannot be made: {above} is no folder; give another out=FILE")
        return path


def parse(arguments: Sequence[str]) -> Request:
    """key=value lines -> the request; ConfigError for one that is not understood, by name."""
    settings: dict[str, str] = {}
    calibration: list[str] = []
    seen: set[str] = set()
    for line in arguments:
        key, equals, value = line.partition("=")
        key = _FORMER.get(key, key)
        if key in seen:
            raise ConfigError(f"{key}= is given twice; {_USAGE}")
        seen.add(key)
        if key.startswith("calibration.") and equals:
            calibration.append(line.removeprefix("calibration."))
        elif key in _KEYS and equals and value:
            settings[key] = value
        else:
            raise ConfigError(f"{line!r} is not understood; {_USAGE}")
    for key in ("format", "run"):
        if key not in settings:
            raise ConfigError(f"{key}= is missing; {_USAGE}")
    if settings["format"] not in FORMATS:
        raise ConfigError(f"format={settings['format']} is unknown; choose one of {', '.join(FORMATS)}")
    if "hw" in settings and settings["format"] not in _ON_DEVICES:
        raise ConfigError(f"hw= means nothing to format={settings['format']}; leave it out")
    return Request(
        format=settings["format"],
        run=settings["run"],
        out=settings.get("out"),
        calibration=_calibration(calibration),
        calibrates=bool(calibration),
        profile=profile_of(settings["hw"]) if "hw" in settings else None,
        trust=packages_of(_listed(settings.get("trust", ""))),
    )


def _listed(text: str) -> list[str]:
    """[a,b], or a alone -> names."""
    inner = text.removeprefix("[").removesuffix("]")
    return [name.strip() for name in inner.split(",")] if inner.strip() else []


def _calibration(lines: Sequence[str]) -> dict[str, Any]:
    """Lines without their prefix over the settings of conf/quant/ptq.yaml, checked."""
    node = OmegaConf.load(CONF / "quant" / "ptq.yaml").calibration
    OmegaConf.set_struct(node, True)
    try:
        node = OmegaConf.merge(node, OmegaConf.from_dotlist(list(lines)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"calibration.{' calibration.'.join(lines)}: choose from {', '.join(node)}") from error
    settings = dict(node)
    if lines:
        # It needs torch: most command lines leave the defaults.
        from octo_exp.runs.posttraining import check_calibration

        try:
            check_calibration(settings)
        except UserError as error:
            raise ConfigError(str(error)) from error
    return settings


def profile_of(name: str) -> HardwareProfile:
    """Return a profile of conf/hw; ConfigError where there is none of that name."""
    path = CONF / "hw" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"hw={name} is unknown; choose one of {known}")
    node = OmegaConf.load(path)
    check_targets({"hw": {name: node}}, trust=())
    profile: HardwareProfile = instantiate(node)
    return profile
