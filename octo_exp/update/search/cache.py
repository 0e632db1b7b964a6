"""What probes gave, in JSON files that are written whole after each, so that a run that was cut off goes on."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from octo_exp.errors import UserError
from octo_exp.mcu.writer import write_atomically
from octo_exp.update.rule import UpdateRule
from octo_exp.update.search.probe import Batch, Outcome, ProbeSettings


class Cache:
    """Outcomes by the name of the probe, of one network, data and settings (`key`): a file of its own in `folder`.

    Raises:
        UserError: the file is not what this class writes, or cannot be written.

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
        content = {name: asdict(outcome) for name, outcome in self._outcomes.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(content, indent=1).encode())

    def _read(self) -> dict[str, Outcome]:
        if not self._path.exists():
            return {}
        try:
            content = dict(json.loads(self._path.read_text()))
            return {name: Outcome(**values) for name, values in content.items()}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self._path} cannot be read ({error}): delete it to probe anew") from error


def fingerprint(
    net: Any, *, rule: UpdateRule, train: Iterable[Batch], val: Iterable[Batch], settings: ProbeSettings
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
