"""A run, or an int8 graph and images beside it, to files of a format: what `octo export` and `octo_exp.export` call."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octo_exp.base.errors import UserError
from octo_exp.base.homes import settle_matplotlib
from octo_exp.exports.formats import module_of
from octo_exp.exports.request import Request

if TYPE_CHECKING:
    from octo_exp.exports.subject import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export has written.

    path: the main file, or the folder of a format that is one. manifest: what stands beside it, in `<path>.json`.
    found: the part of it that the format found. state: `verified` by something else that computed with the files
    (evidence: by what, on how many images, how many were equal, and of what), or `computed` without.
    """

    path: Path
    manifest: Mapping[str, Any]
    found: Mapping[str, Any]

    @property
    def state(self) -> str:
        """Return verified or computed."""
        return str(self.manifest["state"])

    @property
    def evidence(self) -> Mapping[str, Any] | None:
        """Return images, equal, of and by, or None: nothing was verified."""
        evidence: Mapping[str, Any] | None = self.manifest["evidence"]
        return evidence


def export_run(request: Request) -> Exported:
    """Write what is asked for, verified where its format can be.

    UserError where it cannot be, also where a calibration is asked for and the run has its graph already.
    """
    # Torchmetrics imports matplotlib.
    settle_matplotlib()
    # They import torch, and take seconds: only once the command line is known to be right.
    from octo_exp.exports.source import read_run
    from octo_exp.exports.subject import comparison, graph_of

    path = request.destination(module_of(request.format).SUFFIX)
    source = read_run(request.run, trust=request.trust)
    # A run of quant=ptq that was stopped before its graph says itself how it is quantised.
    own = source.cfg.quant.get("calibration") if source.cfg.quant.name == "ptq" and not request.calibrates else None
    calibration = dict(request.calibration if own is None else own)
    graph = graph_of(source, calibration=calibration, profile=request.profile)
    if request.calibrates and graph.origin != "calibrated":
        raise UserError(
            f"calibration.*: run={request.run} holds its int8 graph already; leave calibration.* out, or quantise its "
            "float network anew with train.py"
        )
    used = calibration if graph.origin == "calibrated" else None
    return export_graph(graph, request.format, path, facts={"calibration": used, **comparison(graph, source)})


def export_graph(graph: "Graph", form: str, path: Path, *, facts: Mapping[str, Any]) -> Exported:
    """Write a graph in a format of FORMATS, verify it, and move it to `path`; facts: what else its manifest says."""
    from octo_exp.exports.evidence import state_of, written
    from octo_exp.exports.publish import manifest, publish

    module = module_of(form)
    found: dict[str, Any] = {}

    def write(folder: Path, name: str) -> dict[str, Any]:
        more, evidence = written(module, graph, folder, name)
        found.update(more)
        said = {"state": state_of(evidence), "evidence": None if evidence is None else evidence.shown()}
        return manifest(graph, form, {**facts, **said, **found}, folder, f"{name}{module.SUFFIX}")

    return Exported(path=path, manifest=publish(path, module.SUFFIX, write), found=found)
