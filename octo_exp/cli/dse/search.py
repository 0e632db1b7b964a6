"""Searches machines for the training step of a network: `python sweeps/dse.py --help`."""

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from octo_exp import config as cli
from octo_exp.base.configs import conf_folder
from octo_exp.base.errors import ConfigError, UserError
from octo_exp.base.files import clean
from octo_exp.base.homes import settle_matplotlib
from octo_exp.base.lock import hold
from octo_exp.base.signals import Stopped

if TYPE_CHECKING:
    from rich.progress import TaskID

    from octo_exp.data.protocol import DataModule
    from octo_exp.hw.search.archive import Archive
    from octo_exp.hw.search.scan import Problem, Search
    from octo_exp.hw.search.state import Store
    from octo_exp.workload import Workload

CONF = conf_folder()
STATE_FILE = "search.npz"
INTERRUPTED = 130
METHODS = ("exhaustive", "genetic", "random", "nsga2")
# Designs that are all written down; of more, the best and the Pareto front.
_MOST_POINTS = 200_000
_SAVED_EVERY_S = 1.0
# What searches of one and the same kind may differ in.
_PLACES = ("save_dir", "trust")


def search_machines(cfg: DictConfig) -> dict[str, Any]:
    """Search as `cfg` says, write the files and show the table; return the content of dse.json.

    A folder that holds the same search is gone on with, or returned as it is where that was finished.

    Raises:
        ConfigError: whatever cannot be searched, and a folder that holds another search.
        SystemExit: 130 or 143, after the state was saved, where the process is asked to end.

    """
    folder = Path(cfg.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder, what="search"):
        return _search_in(cfg, folder)


def _search_in(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    from octo_exp.cli.dse import outcome
    from octo_exp.hw.search.state import Store

    config = _request(cfg)
    clean(folder)
    store = Store(folder / STATE_FILE, every_s=_SAVED_EVERY_S, facts={"config": json.dumps(config)})
    with _configuration():
        finished = outcome.read(folder)
        state = None if finished else store.load()
        _check_same(folder, config, finished["config"] if finished else json.loads(state["config"]) if state else None)
        if finished:
            outcome.say(f"already finished: {folder}")
            return finished
        problem = build_problem(cfg)
        search = _search(cfg, problem, folder)
        if state is not None:
            search.restore(state)
            outcome.say(f"going on after {search.spent:,} of {search.budget:,} designs")
    archive = _driven(search, store, folder)
    seconds = store.seconds
    content = outcome.write(folder, problem, archive, config=config, names=_names(cfg), seconds=seconds)
    store.path.unlink(missing_ok=True)
    outcome.show(folder, content)
    return content


@contextlib.contextmanager
def _configuration() -> Iterator[None]:
    """Give mistakes their exit code: before the search begins, all of them lie in the configuration."""
    try:
        yield
    except (UserError, InstantiationException) as error:
        mistake = error if isinstance(error, UserError) else error.__cause__
        if not isinstance(mistake, UserError):
            raise
        raise ConfigError(str(mistake)) from error


def _request(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain values, without what says where things lie."""
    copy = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in _PLACES])
    return dict(json.loads(json.dumps(OmegaConf.to_container(copy, resolve=True))))


def _check_same(folder: Path, here: Mapping[str, Any], there: Mapping[str, Any] | None) -> None:
    if there is None or there == here:
        return
    # What others are interpolated from has the shorter name.
    key, ours, theirs = min(_differences(here, there), key=lambda difference: len(difference[0]))
    raise ConfigError(
        f"{folder} holds another search ({key} is {theirs} there and {ours} here): choose another folder with "
        "hydra.run.dir=<folder>, or delete that one"
    )


def _differences(here: Any, there: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for name in {**here, **there}:
            yield from _differences(here.get(name), there.get(name), f"{key}.{name}" if key else str(name))
    elif here != there:
        yield key, here, there


def build_problem(cfg: DictConfig) -> "Problem":
    """What is searched, and for what; light checks come before the network is built."""
    from octo_exp.config.options import plain
    from octo_exp.config.trust import check_targets
    from octo_exp.hw.search.objectives import Objectives, check_objectives
    from octo_exp.hw.search.scan import Problem, checked_budget
    from octo_exp.hw.search.space import Space
    from octo_exp.workload import ROLES

    if len(cfg.hw) != 1:
        raise ConfigError(f"hw names {', '.join(cfg.hw)}: a search varies one machine, write hw=<option>")
    if cfg.search.method not in METHODS:
        raise ConfigError(f"unknown search.method '{cfg.search.method}': choose one of {', '.join(METHODS)}")
    if cfg.top < 1:
        raise ConfigError(f"top must be at least 1, got {cfg.top}")
    axes = plain(cfg.space or cfg.default_space, resolve=True)
    constraints = {} if cfg.constraints is None else plain(cfg.constraints, resolve=True)
    for role in cfg.roles:
        if role not in ROLES:
            raise ConfigError(f"unknown role '{role}' in roles: choose among {', '.join(ROLES)}")
    if not cfg.roles:
        raise ConfigError(f"roles is empty: choose one or more of {', '.join(ROLES)}")
    check_targets(cfg)
    space = Space(instantiate(next(iter(cfg.hw.values())), _convert_="all"), axes, constraints)
    checked_budget(cfg.search.budget, cfg.search.method, len(space))
    table = cfg.get("energy")
    check_objectives(cfg.objectives, convention=cfg.convention, has_energy=table is not None)
    energy = None if table is None else instantiate(table, _convert_="all")
    return Problem(space, Objectives(cfg.objectives, _workload(cfg), convention=cfg.convention, energy=energy))


def _workload(cfg: DictConfig) -> "Workload":
    """Trace the quantised net's training step; no data is read."""
    # Torchmetrics imports matplotlib.
    settle_matplotlib()
    from octo_exp.models.build import build_model
    from octo_exp.quant.rounding import Clock
    from octo_exp.runs.assemble import quantize_net
    from octo_exp.tracing import optimizer_cost, trace

    datamodule: DataModule = instantiate(cfg.data)
    scheme = instantiate(cfg.quant, _convert_="all")
    net = build_model(cfg.model)
    shape = datamodule.input_shape
    quantize_net(net, scheme, None, impl="torch", clock=Clock(), input_shape=shape)
    workload = trace(
        net,
        shape,
        batch_size=datamodule.batch_size,
        grad_input_form=cfg.grad_input_form,
        optimizer=optimizer_cost(instantiate(cfg.optim.optimizer)(net.parameters())),
        autocast=str(cfg.quant.precision).endswith("-mixed"),
    )
    return _of_roles(workload, list(cfg.roles))


def _of_roles(workload: "Workload", roles: Sequence[str]) -> "Workload":
    gemms = tuple(gemm for gemm in workload.gemms if gemm.role in roles)
    vector = tuple(work for work in workload.vector if work.role in roles)
    if not gemms:
        raise UserError(f"roles=[{','.join(roles)}]: the training step has no GEMM in them, choose others")
    return replace(workload, gemms=gemms, vector=vector, buffers=())


def _search(cfg: DictConfig, problem: "Problem", folder: Path) -> "Search":
    from octo_exp.hw.search.genetic import Genetic
    from octo_exp.hw.search.scan import Scan, checked_budget

    method, seed = cfg.search.method, cfg.search.seed
    if seed < 0:
        raise ConfigError(f"search.seed must not be negative, got {seed}")
    budget = checked_budget(cfg.search.budget, method, len(problem.space))
    if method == "genetic":
        return Genetic(problem, budget=budget, seed=seed)
    if method == "nsga2":
        from octo_exp.cli.dse.nsga2 import Nsga2

        return Nsga2(problem, budget=budget, seed=seed, folder=folder)
    return Scan(problem, sample=None if method == "exhaustive" else budget, seed=seed, limit=_MOST_POINTS, top=cfg.top)


def _driven(search: "Search", store: "Store", folder: Path) -> "Archive":
    """Run to the end, with a progress bar; where the user interrupts, say how to go on."""
    from octo_exp.hw.search.scan import drive

    code = INTERRUPTED
    try:
        with _Bar() as bar:
            return drive(search, store=store, progress=bar)
    except KeyboardInterrupt:
        pass
    except Stopped as stop:
        code = stop.exit_code
    # Told outside of the except clause: `cli.launch` takes an exit inside of one for an interrupt of its own.
    command = shlex.join([*_given(), f"hydra.run.dir={folder}"])
    program = "octo dse" if sys.argv[0] == "octo dse" else "python sweeps/dse.py"
    sys.stderr.write(f"interrupted; to go on: {program} {command}\n")
    sys.exit(code)


def _given() -> list[str]:
    """Return the settings of the command line; outside of Hydra there is none."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


class _Bar:
    """A progress bar on a terminal's stderr, once a search has taken a second."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True, markup=False)
        self._progress = Progress(console=console, transient=True) if console.is_terminal else None
        self._started = time.monotonic()
        self._task: TaskID | None = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *failure: object) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.stop()

    def __call__(self, search: "Search") -> None:
        """Show where the search stands."""
        if self._progress is None:
            return
        if self._task is None and time.monotonic() - self._started > 1:
            self._progress.start()
            self._task = self._progress.add_task("designs", total=search.budget)
        if self._task is not None:
            self._progress.update(self._task, completed=search.spent)


def _names(cfg: DictConfig) -> dict[str, str]:
    model = HydraConfig.get().runtime.choices["model"] if HydraConfig.initialized() else cfg.model._target_
    return {"model": str(model), "data": cfg.data.name, "quant": cfg.quant.name}


def _run(cfg: DictConfig) -> Any:
    return search_machines(cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="dse")
def main(cfg: DictConfig) -> Any:
    """Runs one search; Hydra calls it once per combination with -m."""
    return cli.guarded(_run, cfg)


def start() -> NoReturn:
    """Search as sys.argv says, and exit."""
    cli.launch(main, config_dir=CONF, config_name="dse")
