"""The life of a run: a config becomes objects, they train and test, and one folder holds what came out."""

import contextlib
import gc
import json
import logging
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from octo_exp.base import signals
from octo_exp.base.failures import FILE as FAILURE_FILE
from octo_exp.base.failures import told, write_failure
from octo_exp.base.files import write_json, write_text
from octo_exp.base.lock import hold
from octo_exp.config import identity
from octo_exp.config.trust import check_targets
from octo_exp.data.protocol import DataModule
from octo_exp.runs import folder as folders
from octo_exp.runs import results
from octo_exp.runs.assemble import (
    build_module,
    build_trainer,
    check_settings,
    choice,
    construct,
    fitted,
    replaced,
    resolved,
)
from octo_exp.runs.callbacks.record import RunRecord
from octo_exp.runs.stages import callback_results, facts, stages
from octo_exp.runs.start import config_of, given_keys, identity_of, is_inside, is_sweep, settings, write_command
from octo_exp.runs.tracking import WandbRun

# The run's place in W&B.
TRACKING = "tracking.json"
_NOISE = (
    # Data lie in memory: worker processes would only cost time.
    ".*does not have many workers.*",
    # Short epochs are meant.
    ".*smaller than the logging interval.*",
    # The run's folder holds Hydra's files already, and its checkpoints when it goes on.
    ".*logs directory .* exists and is not empty.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    # A run that goes on from another's checkpoint keeps its own.
    ".*dirpath has changed from.*",
    # A machine of a SLURM cluster, used by itself.
    ".*`srun` command is available on your system.*",
    # Apple's, for which there are no kernels.
    "GPU available but not used.*",
    # Lightning 2.6 with torch 2.13.
    ".*isinstance\\(treespec, LeafSpec\\).*",
)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Train and test what `cfg` says; return the content of results.json.

    A folder that holds the results of the same run already is returned as it is. One that holds a part of it is gone on
    with where `resume` says so, and in a sweep, which thus adds what is missing when it is started again. What another
    run left is moved away, never written over.

    Raises:
        UserError: whatever a run cannot be made of; in the folder of another process, or of a run that the command
            does not fit, nothing is changed then.
        Stopped: the process was asked to end; what was done is kept, and can be gone on with.

    """
    with _quiet(), signals.handled():
        try:
            return _Job(config_of(cfg)).run()
        finally:
            # Trainer and net hold each other: left to chance, a sweep's next job would start beside this one's tensors.
            gc.collect()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what says nothing about this run off the terminal: Lightning's banners and advice."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        yield


class _Job:
    """One run in its folder, from the decision what is to be done there to its results."""

    def __init__(self, cfg: DictConfig, *, shared: bool = False) -> None:
        check_targets(cfg)
        cfg = fitted(cfg, given_keys())
        check_settings(cfg)
        self.source = _source(cfg)
        self.datamodule: DataModule = construct("data", cfg.data, instantiate)
        told = None if self.source is None else self.source.identity
        self.identity: dict[str, Any] = identity_of(cfg, self.datamodule, told)
        self.cfg, self.folder = cfg, Path(cfg.save_dir)
        # What is made for several runs is waited for, where another process makes it just now.
        self._wait: Callable[[str], None] | None = None
        if shared:
            self._wait = lambda owner: results.say(f"{self.folder}: waiting for {owner}")
        self._shared = shared
        self._record: RunRecord | None = None
        if not cfg.train and folders.holds_training(self.folder):
            # Beside what was trained, never over it.
            self.folder = self.folder / folders.EVALUATIONS / self.identity["fingerprint"]
            self.cfg = replaced(cfg, save_dir=str(self.folder))

    def run(self) -> dict[str, Any]:
        """Return the results that are there, or make them."""
        found = self._finished()
        if found is not None:
            return found
        if self.cfg.get("resume") is not None:
            folders.check_is_run(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.folder, wait=self._wait):
            # Another process may have finished it meanwhile.
            found = self._finished()
            if found is not None:
                return found
            folders.check_places(self.folder)
            checkpoint = self._decided()
            try:
                with told(lambda: self._record is not None and self._record.began):
                    return self._owned(checkpoint)
            except Exception as error:
                failure = write_failure(self.folder, error, settings())
                if failure is not None:
                    results.say(failure)
                raise

    def _finished(self) -> dict[str, Any] | None:
        found = folders.finished(self.folder, self.identity)
        if found is not None and not self._shared:
            results.say(f"already finished: {self.folder}")
        return found

    def _decided(self) -> Path | None:
        """Return the checkpoint to go on from, or to evaluate; nothing is changed before that is known."""
        cfg = self.cfg
        if not cfg.train:
            return None if cfg.ckpt is None else folders.checkpoint_path("ckpt", cfg.ckpt)
        resume, sweep = cfg.get("resume") is not None, self._shared or is_sweep()
        # A run that goes on does not need what it once started from.
        given = None if resume else self._given()
        if given is not None and is_inside(str(given), self.folder):
            return given
        found, told = folders.going_on(self.folder, self.identity, resume=resume, sweep=sweep)
        if found is None:
            return self._given() if resume else given
        for line in told:
            results.say(f"{line}; going on from {found.path} instead")
        return found.path

    def _given(self) -> Path | None:
        """Return the checkpoint of ckpt=; RefusedError where this run cannot go on from it."""
        if self.cfg.ckpt is None:
            return None
        given = folders.read(folders.checkpoint_path("ckpt", self.cfg.ckpt), "ckpt")
        obstacle = identity.obstacle(given.run, self.identity)
        if obstacle is not None:
            raise folders.RefusedError(
                f"ckpt: {given.path} cannot be gone on from: {obstacle}; give the run's own settings, or "
                "init_from= to start anew from its weights"
            )
        return given.path

    def _owned(self, checkpoint: Path | None) -> dict[str, Any]:
        """Make the folder this run's, then train and test."""
        continues = checkpoint is not None and is_inside(str(checkpoint), self.folder) and self.cfg.train
        occupant = None if continues else folders.occupant(self.folder, self.identity)
        if occupant is not None:
            kept = folders.make_room(self.folder)
            results.say(f"{self.folder} held another run ({occupant}): it lies in {kept} now")
        if continues and folders.results_of(self.folder) is not None:
            # Of the shorter run: until the longer one is done, there are none.
            folders.set_aside(self.folder, [results.FILE])
        folders.tidy(self.folder)
        (self.folder / FAILURE_FILE).unlink(missing_ok=True)
        write_command(self.folder)
        write_text(self.folder / folders.CONFIG, OmegaConf.to_yaml(self.cfg, resolve=True))
        if self.source is not None and not (continues and not _is_native(self.cfg)):
            self.source.run()
        return self._train_and_test(checkpoint, continues=continues)

    def _train_and_test(self, checkpoint: Path | None, *, continues: bool) -> dict[str, Any]:
        started = time.monotonic()
        cfg = self.cfg
        if self.source is not None:
            cfg = replaced(cfg, init_from=str(self.source.folder))
        if continues and not _is_native(cfg):
            # The checkpoint holds all of it, and what it once started from may be gone.
            cfg = replaced(cfg, init_from=None)
        cfg = replaced(cfg, ckpt=None if checkpoint is None else str(checkpoint))
        lightning.seed_everything(cfg.seed, workers=True, verbose=False)
        self.datamodule.setup()
        built = build_module(cfg, self.datamodule)
        for line in built.verdict.lines() if built.verdict is not None else ():
            results.say(line)
        record = self._record = RunRecord(identity=self.identity, continues=continues)
        trainer, callbacks = build_trainer(cfg, built, record, _page(self.folder, checkpoint, continues=continues))
        # Integers are no parameters: they are counted while they are floats.
        parameters = sum(p.numel() for p in built.module.net.parameters())
        with _finished_loggers(trainer):
            metrics = stages(cfg, trainer, built, self.datamodule, checkpoint)
            content = {
                **record.metrics,
                **metrics,
                **callback_results(callbacks),
                **facts(cfg, trainer, built),
                "parameters": parameters,
                "train_images": self.datamodule.train_size,
                "seconds": record.seconds + time.monotonic() - started,
                "fingerprint": self.identity["fingerprint"],
                "identity": self.identity,
                "overrides": settings(),
                "config": resolved(self.cfg),
            }
            _summarize(trainer, content)
        results.write(self.folder, content)
        if not self._shared:
            results.show(self.folder, content)
        return content


def _is_native(cfg: DictConfig) -> bool:
    """Whether the network itself is made from what the run starts from."""
    return bool(cfg.quant.name == "native")


def _source(cfg: DictConfig) -> _Job | None:
    """The transfer's source, trained once per configuration beside the runs that share it.

    None without a source, where source and target are the same data set (that run starts from nothing), and where a
    checkpoint is given: its weights have been through the transfer.
    """
    source = cfg.get("source")
    if source is None or source.name == cfg.data.name or cfg.ckpt is not None:
        return None
    # What is quantised after training (quant=ptq) trains in float: so does its source.
    quant = cfg.quant.get("training") or cfg.quant
    copy = replaced(cfg, data=source, source=None, init_from=None, train=True, quant=quant, resume=None)
    # Another node stands at `data` now, and interpolations say something else.
    check_targets(copy)
    mark = identity_of(copy, construct("source", copy.data, instantiate), None)["fingerprint"][:8]
    name = f"{source.name}-{choice('model', cfg)}-{quant.name}-s{cfg.seed}-{mark}"
    folder = Path(cfg.save_dir).parent / "_sources" / name
    return _Job(replaced(copy, save_dir=str(folder)), shared=True)


def _page(folder: Path, checkpoint: Path | None, *, continues: bool) -> dict[str, str | None]:
    """Return a run's place in W&B: its id, its group, what it goes on from; kept in the folder for whoever goes on."""
    file = folder / TRACKING
    page: dict[str, Any] = {}
    if continues and file.is_file():
        with contextlib.suppress(OSError, ValueError, TypeError):
            page = dict(json.loads(file.read_text(encoding="utf-8")))
    sweep = Path(str(HydraConfig.get().sweep.dir)).name if is_sweep() else None
    page = {"id": page.get("id") or secrets.token_hex(4), "group": page.get("group") or sweep}
    write_json(file, page)
    return {**page, "resumed_from": None if checkpoint is None else str(checkpoint)}


@contextlib.contextmanager
def _finished_loggers(trainer: Trainer) -> Iterator[None]:
    """Close W&B's runs, however the run ends: its process ends with them."""
    failed = True
    try:
        yield
        failed = False
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                logger.close(failed=failed)


def _summarize(trainer: Trainer, content: Mapping[str, Any]) -> None:
    """Give W&B's run page the figures of results.json that no step logged."""
    numbers = {key: value for key, value in content.items() if isinstance(value, int | float | str)}
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            logger.experiment.summary.update(numbers)
