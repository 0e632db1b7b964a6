"""What a split is made of, as one hash: two runs on other bytes are two experiments."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from octo_exp.base.caches import add_json, cache_folder, read_json
from octo_exp.data.cache import file_key
from octo_exp.data.decode import DECODING
from octo_exp.data.set_spec import Spec
from octo_exp.data.sources import source_files

# file_key -> hash, of what this process has read already.
_known: dict[str, str] = {}


def content_of(spec: Spec, split: str) -> str:
    """A hash of a split's files, in order; the name of what is bundled, or of what lies on the hub.

    Files are read once: later their names, sizes and times of change are compared.

    Raises:
        UserError: there is no such split.

    """
    kind, files = source_files(spec, split)
    if not files:
        return f"{kind} {spec.hub}, decoding {DECODING}" if kind == "hub" else kind
    key = hashlib.sha256(f"{DECODING}|{file_key(files)}".encode("utf-8", "surrogateescape")).hexdigest()
    if key not in _known:
        cache = cache_folder() / "contents.json"
        kept = read_json(cache).get(key)
        _known[key] = kept if isinstance(kept, str) else _hash(files, spec.folder)
        if kept is None:
            add_json(cache, {key: _known[key]})
    return _known[key]


def _hash(files: Sequence[Path], folder: Path | None) -> str:
    # Other pixels of the same bytes are other content.
    digest = hashlib.sha256(f"decoding {DECODING}".encode())
    for path in files:
        # A folder on the way is its class, where folders are classes.
        name = path.relative_to(folder) if folder else path
        digest.update(str(name).encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
