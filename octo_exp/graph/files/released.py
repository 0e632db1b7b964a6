"""Model files as `model=` options: what stands in conf/model for a graph that is read and not built."""

from collections.abc import Mapping
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.base.files import expanded
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.spec import ModelSpec


def graph_file(*, path: str | None, source: str | None, image_size: int, pixels: Mapping[str, Any] | None) -> ModelSpec:
    """Return the graph of a model file.

    Args:
        path: the .pkl.
        source: where the file can be had, for the message where it is missing; None for one's own exports.
        image_size: side of the images in pixels, a fact of the file.
        pixels: {channels, mean, std}: how the data codes its pixels for this graph (read by conf/data); None where
            the graph was made for the data's own normalisation.

    Raises:
        UserError: no such file, not a model, or one for images of another size.

    """
    if path is None or not expanded(path).is_file():
        remedy = "give model.path=<file>.pkl, or set OCTO_MCU_DIR to the folder that holds it"
        fetch = "" if source is None else f"octo fetch places it (published at {source}), else "
        raise UserError(f"model.path={path}: no such file; {fetch}{remedy}")
    spec = read_model(path)
    size = spec.convs[0].in_size
    if image_size != size:
        raise UserError(f"model.image_size={image_size}: {path} holds a graph for {size}; set model.image_size={size}")
    return spec
