"""What the yaml files of conf/ say, for those who call the library: they are the one source of defaults."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from octo_exp.base.configs import conf_folder
from octo_exp.base.errors import ConfigError


def shipped(*options: str) -> DictConfig:
    """Return what `+group=option` and changes of it compose, by themselves."""
    with _own_hydra(), initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(overrides=list(options))


def check_option(group: str, name: str, *, what: str | None = None) -> None:
    """Raise ConfigError, with the nearest right name, for an option that a group has not; what: the word for it."""
    names = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"unknown {what or group} {name!r}: {near(name, names)}choose one of {', '.join(names)}")


def near(name: str, known: Iterable[str]) -> str:
    """Return the question whether the nearest known name was meant, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{found[0]}'? " if found else ""


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Put Hydra's one global state aside: within an app of `hydra.main` it is the app's."""
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = theirs
