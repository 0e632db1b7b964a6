"""What a run is: everything that can change a number of it, as plain values and as one hash."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

# Raised by hand whenever the same configuration gives other numbers than before (tests/test_numerics.py tells): results
# of an older number count as of another experiment. A release alone voids nothing.
NUMERICS = 1

# Beginnings of keys that change no number: places, names of loggers, progress, when checkpoints are written, and the
# length that a data set recommends (the trainer's own length counts). What lies at a place counts by its content.
_NO_NUMBER = (
    *("save_dir", "ckpt", "init_from", "resume", "trust", "logger"),
    *("data.root", "data.epochs", "data.origin", "source.root", "source.epochs", "source.origin", "model.path"),
    *("callbacks.progress", "callbacks.last_checkpoint", "callbacks.checkpoint.dirpath"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.default_root_dir"),
)
_NONE_OF_ITS_OWN: list[tuple[str, dict[str, Any]]] = [("data.transforms", {}), ("source.transforms", {})]
# Beginnings of keys that a run which goes on may change: what a step costs is computed beside the training, what is
# tested comes after it.
_BESIDE = ("hw", "energy", "callbacks.cost", "train", "test", "trainer.limit_test_batches")
# A run that goes on may be longer, never shorter; null and -1 have no end.
_LENGTHS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")
# What is told, and where: of the keys that change no number those that a command may give anew.
_NAMES = (
    *("logger", "trust", "callbacks.progress", "callbacks.last_checkpoint", "trainer.enable_progress_bar"),
    # The content of what lies there is compared.
    *("data.root", "source.root", "model.path", "data.epochs"),
)
# Beginnings of keys that make the network; an evaluation needs no other to agree.
_NETWORK = ("model", "quant", "data.classes", "data.channels", "data.image_size")


def counted(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config -> dotted key -> value of all that can change a number."""
    # Runs from before there were any have no such key.
    pairs = {key: value for key, value in flat(config) if counts(key) and (key, value) not in _NONE_OF_ITS_OWN}
    return pairs | _orders(config)


def _orders(config: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> names in their order, of the mappings whose order changes numbers; one name has none."""
    found = {}
    for key, _ in _NONE_OF_ITS_OWN:
        part, _, name = key.partition(".")
        node = (config.get(part) or {}).get(name)
        if isinstance(node, Mapping) and len(node) > 1:
            found[f"{key} in order"] = list(node)
    return found


def counts(key: str) -> bool:
    """Whether a setting can change a number; places, names of loggers and progress cannot."""
    return not _below(key, _NO_NUMBER)


def identity(config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return a run's identity.

    Args:
        config: resolved.
        inputs: name -> hash of the content of what the run starts from: weights, a model's file, data.

    Returns:
        config (dotted key -> value), inputs, numerics, and `fingerprint`, 16 hex digits that depend on all of it.

    """
    told = {"config": counted(config), "inputs": dict(inputs), "numerics": NUMERICS}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    return {"fingerprint": digest[:16], **told}


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value; lists are values, an empty mapping is one too."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    elif key:
        yield key, value


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Say what two identities differ in, `key is x there and y here` of the shortest key; None where they are equal."""
    return _first([*_pairs(there, here)])


def obstacle(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Say why a run cannot go on from another's checkpoint; None where it can.

    Everything must be equal but hw, energy, cost, logger, progress and the length, which may only grow. What the other
    run started from does not matter any more.
    """
    pairs = [pair for pair in _pairs(there, here) if not pair[0].startswith("inputs.") or pair[0] == "inputs.data"]
    pairs = [pair for pair in pairs if not _below(pair[0], _BESIDE) and not _grows(*pair)]
    return _first(pairs)


def may_change(key: str) -> bool:
    """Whether a run that goes on takes this key from the command: what is beside the training, lengths and names."""
    return key in _LENGTHS or (key != "train" and _below(key, (*_BESIDE, *_NAMES)))


def other_network(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Say why an evaluation cannot read another's checkpoint; None where model and scheme are equal."""
    return _first([pair for pair in _pairs(there, here) if _below(pair[0], _NETWORK)])


def _pairs(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    ours, theirs = here["config"], there["config"]
    for key in dict.fromkeys([*theirs, *ours]):
        if _plain(theirs.get(key)) != _plain(ours.get(key)):
            yield key, theirs.get(key), ours.get(key)
    for name in dict.fromkeys([*there["inputs"], *here["inputs"]]):
        if there["inputs"].get(name) != here["inputs"].get(name):
            yield f"inputs.{name}", there["inputs"].get(name), here["inputs"].get(name)
    if there["numerics"] != here["numerics"]:
        yield "numerics", there["numerics"], here["numerics"]


def _plain(value: Any) -> Any:
    """Return a value as it comes back from JSON: tuples are lists."""
    return json.loads(json.dumps(value, default=str))


def _first(pairs: list[tuple[str, Any, Any]]) -> str | None:
    if not pairs:
        return None
    # What others are interpolated from has the shorter name.
    key, theirs, ours = min(pairs, key=lambda pair: len(pair[0]))
    if key.startswith("inputs."):
        return f"the content of {key.removeprefix('inputs.')} is another"
    if key == "numerics":
        return f"it was made by a version that computes otherwise (numerics {theirs}, here {ours})"
    return f"{key} is {_text(theirs)} there and {_text(ours)} here"


def _grows(key: str, theirs: Any, ours: Any) -> bool:
    if key not in _LENGTHS:
        return False
    if ours in (None, -1):
        return True
    if theirs in (None, -1):
        return False
    length = _seconds if key == "trainer.max_time" else float
    try:
        return bool(length(ours) >= length(theirs))
    except (TypeError, ValueError):
        return False


def _seconds(value: Any) -> float:
    """Return Lightning's max_time, DD:HH:MM:SS or a mapping's flattened part, in seconds."""
    if not isinstance(value, str):
        return float(value)
    days, hours, minutes, seconds = (float(part) for part in value.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _below(key: str, beginnings: tuple[str, ...]) -> bool:
    return any(key == beginning or key.startswith(f"{beginning}.") for beginning in beginnings)


def _text(value: Any) -> str:
    # By identity: 1 equals True.
    return next(
        (text for known, text in ((None, "null"), (True, "true"), (False, "false")) if value is known), str(value)
    )
