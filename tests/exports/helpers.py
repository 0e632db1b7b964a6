"""A format's files, written and verified as an export does it."""

from pathlib import Path
from types import ModuleType
from typing import Any

from octo_exp.exports.evidence import written


def exported(form: ModuleType, graph: Any, folder: Path, name: str) -> dict[str, Any]:
    """What the manifest says of the files, and `images`, those of which the logits or classes were found equal."""
    found, evidence = written(form, graph, folder, name)
    return found if evidence is None else {**found, "images": evidence.equal}
