"""What makes an export *verified*: its files, computed by something else, beside its graph. Without it: *computed*."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from octo_exp.base.errors import FailedError
from octo_exp.exports.subject import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the files answered to test images.

    images: how many were compared, 1 or more. equal: how many of them the graph answers in the same way: `of`, the
    codes of the logits, or the classes. by: what computed. allowed: how many may differ. remedy: what to do where more
    do. facts: what else was found, for the manifest.
    """

    images: int
    equal: int
    by: str
    of: str = "logits"
    allowed: int = 0
    remedy: str = "nothing is kept; choose another format"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no evidence."""
        if not 0 <= self.equal <= self.images or self.images < 1:
            raise ValueError(f"evidence needs an image or more: {self.equal} of {self.images} equal is none")

    def shown(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {"images": self.images, "equal": self.equal, "of": self.of, "by": self.by}


def state_of(evidence: Evidence | None) -> str:
    """Return what files are called: verified, with evidence, or computed."""
    return "computed" if evidence is None else "verified"


def written(form: ModuleType, graph: Graph, folder: Path, name: str) -> tuple[dict[str, Any], Evidence | None]:
    """Let a format write its files, then verify them; return (what was found, the evidence or None).

    Raises:
        UserError: the format cannot hold the graph, or more images differ than the evidence allows.

    """
    found = dict(form.write(graph, folder, name))
    if not hasattr(form, "verify"):
        return found, None
    evidence = form.verify(graph, folder, name)
    if not isinstance(evidence, Evidence):
        raise TypeError(f"{form.__name__}.verify must return Evidence, got {type(evidence).__name__}")
    wrong = evidence.images - evidence.equal
    if wrong > evidence.allowed:
        what = f"{wrong} of {evidence.images} images have other {evidence.of} than the graph, by {evidence.by}"
        raise FailedError(f"{name}{form.SUFFIX} does not verify: {what}; {evidence.remedy}")
    return found | dict(evidence.facts), evidence
