"""A run, an int8 graph or a trained network as a file that other programs read, verified, in one call."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from torch import Tensor, nn

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.exports.exported import Exported, export_graph, export_run
from octo_exp.exports.formats import FORMATS, module_of
from octo_exp.exports.request import Request, parse
from octo_exp.exports.subject import given_graph
from octo_exp.facade.int8_graphs import calibrate
from octo_exp.facade.shipped import check_option, near
from octo_exp.graph.integers import IntegerNet
from octo_exp.graph.spec import ModelSpec

Subject = str | PathLike[str] | ModelSpec | IntegerNet | nn.Module


def export(
    subject: Subject,
    format: str,
    *,
    out: str | PathLike[str] | None = None,
    images: Tensor | Iterable[Tensor] | None = None,
    fresh: nn.Module | None = None,
    hw: str | None = None,
    trust: Sequence[str] = (),
    **calibration: Any,
) -> Exported:
    """Write files of a format and let something else compute with them before they are kept; say what it found.

    Args:
        subject: the folder of a run, as `octo export` takes it; an int8 graph (`octo_exp.calibrate`, `read_graph`, an
            IntegerNet); or a trained network, which is calibrated on the images first.
        format: c, mcu, onnx, report, text.
        out: the file, or the folder of format=text; needed unless a run's own folder takes it.
        images: batches [N, C, S, S] float32, normalised, that the files are verified on. None for a run, which has its
            test images, and for a report of a graph, which nothing verifies.
        fresh: of a network that was quantised for training the float one as it was made, see `octo_exp.calibrate`.
        hw: the device of c and report, what `hw=` names.
        trust: packages that a run's config may name, beside this project's, torch's and lightning's.
        calibration: settings of `octo_exp.calibrate`, where the subject has no int8 graph yet.

    Raises:
        UserError: an unknown format, machine or setting; a subject without an int8 form; files that do not verify:
            nothing is kept then, and nothing replaced.

    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}: {near(str(format), FORMATS)}choose one of {', '.join(FORMATS)}")
    if hw is not None:
        check_option("hw", hw)
    if isinstance(subject, str | PathLike):
        if images is not None or fresh is not None:
            raise UserError("a run's folder is verified on its own test images: leave out images and fresh")
        return export_run(_request(format, fspath(subject), out, hw, trust, calibration))
    if trust:
        raise UserError("trust says what a run's config may name: leave it out, the subject is no run's folder")
    # The place is looked at before images are read.
    if out is None:
        raise UserError(f"out= must be given: export(..., {format!r}, out=FILE) where the subject is no run's folder")
    request, form = _request(format, ".", out, hw, (), {}), module_of(format)
    path = request.destination(form.SUFFIX)
    is_graph = isinstance(subject, ModelSpec | IntegerNet)
    batches = [] if images is None and is_graph and not hasattr(form, "verify") else _batches(images)
    graph = given_graph(_spec(subject, batches, fresh, calibration), batches, profile=request.profile)
    return export_graph(graph, format, path, facts={})


def _request(
    form: str,
    run: str,
    out: str | PathLike[str] | None,
    hw: str | None,
    trust: Sequence[str],
    calibration: Mapping[str, Any],
) -> Request:
    """Return the request that the command line's words are; ConfigError as for those."""
    words = {"out": out, "hw": hw, "trust": ",".join(trust) or None}
    lines = [f"{key}={fspath(value)}" for key, value in words.items() if value is not None]
    lines += [f"calibration.{key}={value}" for key, value in calibration.items()]
    return parse([f"format={form}", f"run={run}", *lines])


def _batches(images: Tensor | Iterable[Tensor] | None) -> list[Tensor]:
    """Return images as batches, read once."""
    if images is None:
        raise UserError("images= must be given, what is written is verified on them: a tensor [N, C, S, S], or batches")
    batches = [images] if isinstance(images, Tensor) else list(images)
    if not batches or not all(isinstance(batch, Tensor) for batch in batches):
        raise UserError("images must be a tensor [N, C, S, S] or a list of them, one or more")
    return batches


def _spec(subject: Any, images: list[Tensor], fresh: nn.Module | None, calibration: Mapping[str, Any]) -> ModelSpec:
    """Return the int8 graph that the subject is, or becomes."""
    if isinstance(subject, nn.Module) and not isinstance(subject, IntegerNet):
        return calibrate(subject, images, fresh=fresh, **calibration)
    if not isinstance(subject, ModelSpec | IntegerNet):
        raise UserError(
            f"export takes a run's folder, an int8 graph or a torch.nn.Module, got {type(subject).__name__}"
        )
    if fresh is not None or calibration:
        given = ", ".join([*(["fresh"] if fresh is not None else []), *calibration])
        raise UserError(f"{given}: the subject is an int8 graph already; leave it out")
    return subject.spec if isinstance(subject, IntegerNet) else subject
