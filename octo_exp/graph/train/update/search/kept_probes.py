"""What probes gave, in JSON files that are written whole after each, so that a run that was cut off goes on."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from octo_exp.base.caches import add_json, read_json, say_once
from octo_exp.graph.train.update.rule import UpdateRule
from octo_exp.graph.train.update.search.probe import Batch, Outcome, ProbeSettings


class Cache:
    """Outcomes by the name of the probe, of one network, data and settings (`key`): a file of its own in `folder`.

    Searches of one key share it. What is damaged is probed anew; where it cannot be written, a line says so and the
    outcomes last as long as the process.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / f"{key[:16]}.json"
        self._outcomes = self._read()

    def __contains__(self, name: str) -> bool:
        return name in self._outcomes

    def __getitem__(self, name: str) -> Outcome:
        return self._outcomes[name]

    def add(self, name: str, outcome: Outcome) -> None:
        """Keep and write an outcome."""
        # Another budget's search of the same key may have written since.
        self._outcomes = self._read() | self._outcomes | {name: outcome}
        add_json(self._path, {key: _plain(known) for key, known in self._outcomes.items()})

    def _read(self) -> dict[str, Outcome]:
        found = {name: _outcome(values) for name, values in read_json(self._path).items()}
        if None in found.values():
            say_once(
                f"outcomes in {self._path}", "%s holds what is no outcome of a probe, and is made anew", self._path
            )
        return {name: outcome for name, outcome in found.items() if outcome is not None}


def _plain(outcome: Outcome) -> dict[str, float | str]:
    """An outcome for a file: JSON has no inf and no nan, which stand there as words."""
    return {key: value if math.isfinite(value) else str(value) for key, value in asdict(outcome).items()}


def _outcome(values: Any) -> Outcome | None:
    try:
        return Outcome(**{key: float(value) for key, value in values.items()})
    except (AttributeError, TypeError, ValueError):
        return None


def fingerprint(
    net: nn.Module, *, rule: UpdateRule, train: Iterable[Batch], val: Iterable[Batch], settings: ProbeSettings
) -> str:
    """Return a hash of all that an outcome depends on beside the probe; the network with its weights as imported."""
    sparse = rule.sparse
    facts = [asdict(settings), rule.optimizer, rule.mode, rule.weight_decay, sparse.criteria, sparse.seed, repr(net)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        _add(digest, tensor)
    for batches in (train, val):
        for x, labels in batches:
            _add(digest, x)
            _add(digest, labels)
    return digest.hexdigest()


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().numpy())
