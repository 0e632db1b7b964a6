"""metrics.csv: every logged number of a run, one history however often the run was broken off."""

import csv
import io
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.base.files import write_text

log = logging.getLogger(__name__)

FILE = "metrics.csv"


class MetricsFile(Logger):
    """Writes what is logged as rows of a table, columns in alphabetical order.

    The file is always whole, and is written anew after `flush_logs_every_n_steps` new rows (of a long history: after a
    twentieth of it), at each checkpoint and at the end. Lightning's CSVLogger deletes the file of a run that goes on.

    Args:
        save_dir: folder of metrics.csv.
        name: part of the path that Lightning's loggers have; "" here.
        version: the same.
        flush_logs_every_n_steps: rows, at least 1.

    Raises:
        UserError: `flush_logs_every_n_steps` is not positive; in use, what `write_text` raises.

    """

    def __init__(self, *, save_dir: str, name: str, version: str, flush_logs_every_n_steps: int) -> None:
        super().__init__()
        if flush_logs_every_n_steps < 1:
            raise UserError(f"flush_logs_every_n_steps={flush_logs_every_n_steps} must be at least 1")
        self._folder = Path(save_dir) / name / version
        self._name, self._version = name, version
        self._every = flush_logs_every_n_steps
        self._rows: list[dict[str, Any]] = []
        self._written = 0

    @property
    def name(self) -> str:
        """Return the name that was given."""
        return self._name

    @property
    def version(self) -> str:
        """Return the version that was given."""
        return self._version

    @property
    def rows(self) -> int:
        """Return how many rows the history has."""
        return len(self._rows)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Return the rows, text where they were taken over from a file."""
        return list(self._rows)

    @property
    def path(self) -> Path:
        """Return the file."""
        return self._folder / FILE

    def go_on(self, rows: int) -> None:
        """Take over the first `rows` rows of the file that is there: those that were logged before a checkpoint."""
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                kept = list(csv.DictReader(file))[:rows]
        except FileNotFoundError:
            kept = []
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{self.path} cannot be gone on with ({error}); move it away") from error
        if len(kept) < rows:
            log.warning(
                "%s holds %d of the %d rows before the checkpoint: the others are lost", self.path, len(kept), rows
            )
        # What a row did not log is empty in the file.
        self._rows = [{key: value for key, value in row.items() if value not in ("", None)} for row in kept]
        self._written = 0

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: settings stand in config.yaml, figures of the run in results.json."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add a row."""
        numbers = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        self._rows.append({**numbers, "step": len(self._rows) if step is None else step})
        if len(self._rows) - self._written >= max(self._every, self._written // 20):
            self.flush()

    def flush(self) -> None:
        """Write the file, where there is anything new."""
        if self._written == len(self._rows):
            return
        columns = sorted({key for row in self._rows for key in row})
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self.path, text.getvalue(), remedy="choose another folder with hydra.run.dir=<folder>")
        self._written = len(self._rows)

    def finalize(self, status: str) -> None:
        """Write what is left, however the run ends."""
        self.flush()
