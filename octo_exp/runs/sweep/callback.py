"""What Hydra calls at the start and the end of a sweep."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback

from octo_exp.base.errors import UserError
from octo_exp.config import at_stop, report_failures

if TYPE_CHECKING:
    from omegaconf import DictConfig


class SummaryCallback(Callback):
    """Holds the folder of a Hydra multirun while it lasts, and ends it with the table of that folder."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()

    def on_multirun_start(self, config: "DictConfig", **kwargs: Any) -> None:
        """Takes the folder; where another sweep has it, nothing in it is changed and the program ends."""
        from octo_exp.base.lock import hold

        folder = Path(str(config.hydra.sweep.dir))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(hold(folder, what="sweep"))
        except (UserError, OSError) as error:
            # Hydra would turn it into a warning.
            sys.stderr.write(f"error: {error}\n")
            sys.exit(getattr(error, "exit_code", 1))
        at_stop(lambda: self._report(folder))

    def on_multirun_end(self, config: "DictConfig", **kwargs: Any) -> None:
        """Reports on the sweep's folder; failed jobs count for the exit code."""
        report_failures(self._report(Path(str(config.hydra.sweep.dir))))

    def _report(self, folder: Path) -> int:
        # Every command line looks at this class, and few end in a table.
        from octo_exp.runs.sweep.summary import report

        try:
            return report(folder)
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
        finally:
            self._held.close()
