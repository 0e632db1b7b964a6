"""Image sets on the Hugging Face hub, read with `datasets`: a quick answer in one line where there is no network."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octo_exp.base.homes import settle_hugging_face
from octo_exp.data.decode import first_line
from octo_exp.errors import UserError

# A name that does not resolve can block far longer than a connection's own time limit.
_PROBE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSplit:
    """One split as `datasets` gives it."""

    content: Any

    @property
    def names(self) -> list[str]:
        """Columns."""
        return list(self.content.column_names)

    def columns(
        self, image_column: str, label_column: str
    ) -> tuple[list[bytes | None], list[int], Sequence[str] | None]:
        """Encoded images, labels, and class names where the set has them."""
        from datasets import Image

        raw = self.content.cast_column(image_column, Image(decode=False))[:]
        encoded = [_encoded(row) for row in raw[image_column]]
        labels = [-1 if label is None else label for label in raw[label_column]]
        return encoded, labels, getattr(self.content.features[label_column], "names", None)


def load_hub_split(hub: str, split: str, *, problem: str, remedy: str) -> HubSplit:
    """Download `split` of `hub`, or find it in the Hugging Face cache.

    Raises:
        UserError: made of `problem`, what went wrong at the hub, and `remedy`; after at most a few seconds where
            there is no network. HF_HUB_OFFLINE=1 asks the Hugging Face cache alone.

    """
    settle_hugging_face()
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        refusal = _probe(hub)
        if refusal is not None:
            raise UserError(f"{problem}, and the hub does not give {hub} ({refusal}); {remedy}")
    try:
        splits = _load(hub)
    except Exception as error:
        raise UserError(f"{problem}, and the hub does not give {hub} ({first_line(error)}); {remedy}") from error
    if split not in splits:
        raise UserError(
            f"hub data set {hub} has no split {split}, only {', '.join(splits)}: "
            f"set data.train_split=, data.test_split= to what it has, or data.hub= to another"
        )
    return HubSplit(content=splits[split])


def _load(hub: str) -> Any:
    """All splits of the set, without the libraries' own progress bars."""
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from rich.console import Console
    from rich.markup import escape

    disable_progress_bars()
    datasets.disable_progress_bars()
    with Console(stderr=True, markup=False).status(escape(f"downloading {hub} from the hub")):
        return datasets.load_dataset(hub)


def _probe(hub: str) -> str | None:
    """Ask the hub for the set's description, within a time limit: None, or what stands in the way."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            from huggingface_hub import HfApi

            HfApi().dataset_info(hub, timeout=_PROBE_SECONDS)
            answer.append(None)
        except Exception as error:
            answer.append(first_line(error))

    # A daemon, since nothing can stop a name lookup that hangs.
    thread = threading.Thread(target=ask, daemon=True, name="octo-exp hub probe")
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answer[0] if answer else f"no answer within {_PROBE_SECONDS:g} s"


def _encoded(row: dict[str, Any] | None) -> bytes | None:
    if row is None or (row["bytes"] is None and row["path"] is None):
        return None
    return row["bytes"] if row["bytes"] is not None else Path(row["path"]).read_bytes()
