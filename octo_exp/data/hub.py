"""Image sets on the Hugging Face hub, read with `datasets`: a quick answer in one line where there is no network."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.base.homes import settle_hugging_face
from octo_exp.data.decode import first_line
from octo_exp.data.labels import BOOLEAN_NAMES, is_boolean, is_text, label_values, numbered
from octo_exp.data.set_spec import Encoded, Spec, check_labels, check_names, choose_image_column, row_name

# A name that does not resolve can block far longer than a connection's own time limit.
_PROBE_SECONDS = 5.0
# Images at once: photographs may have megabytes.
_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSplit:
    """One split as `datasets` gives it."""

    content: Any

    @property
    def names(self) -> list[str]:
        """Columns."""
        return list(self.content.column_names)

    def labels(self, column: str) -> Any:
        """A column of labels as an arrow array."""
        import pyarrow as pa

        return pa.array(self.content.select_columns([column])[:][column] if len(self.content) else [])

    def class_names(self, column: str) -> Sequence[str] | None:
        """Names of its classes where the set has them; of a list of one label they are inside."""
        feature = self.content.features[column]
        return getattr(getattr(feature, "feature", feature), "names", None)

    def encoded(self, column: str) -> Iterator[bytes | None]:
        """The images of a column, a few at once."""
        from datasets import Image

        for rows in self.content.select_columns([column]).cast_column(column, Image(decode=False)).iter(_ROWS):
            yield from map(_encoded, rows[column])


def read_hub_split(spec: Spec, split: str) -> Encoded:
    """Read and check the labels of a split; its classes are named as those of parquet files are."""
    if spec.hub is None:
        raise UserError(f"data set {spec.name}: data.source=hub needs data.hub=, an id such as ylecun/mnist")
    content = load_hub_split(spec.hub, split, problem=spec.looked_for(), remedy=spec.remedy())
    where = f"hub data set {spec.hub}, split {split}"
    column = choose_image_column(spec, content.names, where)
    labels = content.labels(spec.label_column)
    if not len(labels):
        raise UserError(f"{where} is empty: set data.hub= to another data set")
    names = content.class_names(spec.label_column) or (BOOLEAN_NAMES if is_boolean(labels.type) else None)
    if names is None and is_text(labels.type):
        named = load_hub_split(spec.hub, spec.class_split, problem=spec.looked_for(), remedy=spec.remedy())
        texts = label_values(
            named.labels(spec.label_column), spec, f"hub data set {spec.hub}, split {spec.class_split}"
        )
        names = sorted(set(texts.tolist()))
    class_names = check_names(names, spec, where)
    values = numbered(label_values(labels, spec, where), class_names, spec, where)
    return Encoded(
        labels=check_labels(values, spec, where),
        class_names=class_names,
        images=lambda: content.encoded(column),
        where=partial(row_name, where),
    )


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
    try:
        return row["bytes"] if row["bytes"] is not None else Path(row["path"]).read_bytes()
    except OSError as error:
        raise UserError(f"{row['path']} cannot be read ({error.strerror}): download the data set again") from error
