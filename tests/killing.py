"""Kills runs at random moments and lets them go on: `python -m tests.killing --kills 30 --signal KILL`.

Each case is trained once without a kill, then again and again with one, in processes of their own that are made by fork
from this one, which itself computes nothing. Whatever is killed goes on by resume=auto. At the end of each run its
results (but times), its weights and its history must be those of the run that never stopped. With `--inside` the
moments are not random: one run is killed at each fsync and each rename that it makes, in checkpoints, results and all.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from octo_exp.base import signals
from octo_exp.runs import folder as folders
from tests.run_helpers import go
from tests.test_resume import CASES, EVERY, accompanied, numbers

INTERVAL = 3
KILLED = {
    "octo": CASES["octo"],
    "lac": CASES["lac"],
    "accumulate": CASES["accumulate"],
    "sparse": (
        *("model=lenet5", "data=digits", "data.limit_train=80", "data.epochs=2", "data.batch_size=12", "logger=csv"),
        *("hw=[]", "trainer.log_every_n_steps=1", "quant=native", "init_from={float}"),
        *("update=sparse", "update.sparse.n_bias=2"),
    ),
}


class Told(Callback):
    """Writes the step that has been made into memory that another process sees."""

    def __init__(self, shared: mmap.mmap) -> None:
        self.shared = shared

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.shared[:8] = trainer.global_step.to_bytes(8, "little")


def forked(work: Callable[[], Any], *, after_s: float | None = None, number: int = signal.SIGKILL) -> int:
    """Do the work in a process of its own, kill that after some seconds; return its exit code, -n for signal n."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        except signals.Stopped as stop:
            code = stop.exit_code
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killing_at(call: int) -> None:
    """Let this process be killed at its call-th fsync or rename, before it is done."""
    left = call

    def instead(known: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return known(*arguments, **more)

        return counted

    os.fsync, os.replace = instead(os.fsync), instead(os.replace)


class Case:
    """One kind of run, killed until it has been `kills` times."""

    def __init__(self, name: str, place: Path, *, number: int, seed: int) -> None:
        self.name, self.place, self.number = name, place, number
        self.shared = mmap.mmap(-1, 8)
        self.random = random.Random(f"{name} {seed}")
        self.settings = tuple(line.replace("{float}", str(place / "float")) for line in KILLED[name])

    def _train(self, folder: Path, *more: str, call: int = 0) -> Callable[[], Any]:
        def work() -> None:
            torch.set_num_threads(1)
            killing_at(call)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
            with accompanied(pytest.MonkeyPatch(), Told(self.shared)):
                go(folder, *self.settings, *more)

        return work

    def run(self, kills: int) -> dict[str, Any]:
        """Return what was seen; AssertionError where anything differs."""
        whole = self._whole()
        started = time.monotonic()
        assert forked(self._train(self.place / "timed")) == 0
        length, done, finished, lost = time.monotonic() - started, 0, 0, 0
        while done < kills:
            folder = self.place / f"run{finished}"
            while not (folder / "results.json").exists():
                self.shared[:8] = bytes(8)
                after = self.random.uniform(0, 1.1 * length) if done < kills else None
                more = (f"{EVERY}={INTERVAL}", "resume=auto")
                code = forked(self._train(folder, *more), after_s=after, number=self.number)
                assert code in (0, -self.number, 128 + self.number), f"{self.name}: exit code {code}"
                assert not (folder / "failed.json").exists()
                done += code != 0
                # Not killed: the machine may have been slower when the run was timed.
                length *= 1 if code else 0.9
                lost = max(lost, self._lost(folder))
            self._compare(whole, folder)
            finished += 1
        return {
            "case": self.name,
            "kills": done,
            "runs": finished,
            "seconds of a run": round(length, 1),
            "most lost": lost,
        }

    def _whole(self) -> Path:
        """Train once without a kill; return the folder."""
        if self.name == "sparse":
            floats = ("data.limit_train=150", "data.epochs=1", "logger=csv", "hw=[]")
            assert forked(lambda: go(self.place / "float", "model=lenet5", "data=digits", "quant=fp32", *floats)) == 0
        assert forked(self._train(self.place / "whole")) == 0
        return self.place / "whole"

    def run_inside(self, every: int) -> dict[str, Any]:
        """Kill at each `every`-th fsync or rename of a run, once each; return how many; AssertionError as for `run`."""
        whole, call = self._whole(), every
        more = (f"{EVERY}={INTERVAL}", "resume=auto")
        while True:
            folder = self.place / f"inside{call}"
            code = forked(self._train(folder, *more, call=call))
            assert code in (0, -signal.SIGKILL), f"{self.name}: exit code {code} at write {call}"
            if code == 0:
                return {"case": self.name, "kills inside a write": call // every - 1}
            assert forked(self._train(folder, *more)) == 0, f"{self.name}: write {call}"
            self._compare(whole, folder)
            shutil.rmtree(folder)
            call += every

    def _lost(self, folder: Path) -> int:
        """Return the steps between what was made and what can be gone on from."""
        made = int.from_bytes(self.shared[:8], "little")
        found, damaged = folders.newest(folder, "resume")
        assert not damaged, damaged
        lost = max(0, made - (0 if found is None else found.step))
        assert lost <= INTERVAL, f"{self.name}: {lost} steps are lost"
        return lost

    def _compare(self, whole: Path, folder: Path) -> None:
        first, second = (json.loads((place / "results.json").read_text()) for place in (whole, folder))
        assert numbers(first) == numbers(second), self.name
        histories = [(place / "metrics.csv").read_text() for place in (whole, folder)]
        assert histories[0] == histories[1], self.name
        assert not list(folder.rglob("*.partial")), self.name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--signal", default="KILL", choices=["KILL", "TERM", "INT"])
    parser.add_argument("--cases", default=",".join(KILLED))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", type=int, metavar="N", help="kill at each N-th fsync or rename instead")
    options = parser.parse_args(arguments)
    number = signal.Signals[f"SIG{options.signal}"]
    for name in options.cases.split(","):
        place = Path(tempfile.mkdtemp(prefix=f"killing-{name}-"))
        try:
            case = Case(name, place, number=number, seed=options.seed)
            told = case.run(options.kills) if options.inside is None else case.run_inside(options.inside)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        sys.stdout.write(json.dumps({"signal": options.signal, **told}) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
