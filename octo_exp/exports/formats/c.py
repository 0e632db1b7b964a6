"""format=c: one C99 file with its header, integers alone, no heap; compiled and run before it is kept."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.exports.c99.arena import arena_of
from octo_exp.exports.c99.code import Code, header_file, identifier
from octo_exp.exports.c99.titles import sizes_of, title_of
from octo_exp.exports.c99.verify import compiler, logits_of, version_of
from octo_exp.exports.evidence import Evidence
from octo_exp.exports.subject import Graph

SUFFIX = ".c"
# Test images whose logits must be the graph's.
_IMAGES = 100
# Indices are int32.
_LIMIT_BYTES = 2**31 - 1


def write(graph: Graph, folder: Path, name: str) -> dict[str, Any]:
    """Write `name`.c and its header into the folder; return the bytes that they take.

    Raises:
        UserError: more memory than the profile's SRAM, an array of 2 GiB, no compiler to verify with.

    """
    code = Code(name=identifier(name), net=graph.net, arena=arena_of(graph.net.spec))
    _check_indices(code)
    sram_bytes = _check_sram(graph, code)
    compiler()
    source, header = folder / f"{name}{SUFFIX}", folder / header_file(name)
    header.write_text(code.header())
    source.write_text(code.source(header.name))
    return {
        "arena_bytes": code.arena.size_bytes,
        "input_bytes": code.input_bytes,
        "logits_bytes": code.logits_bytes,
        "weight_bytes": code.weight_bytes,
        "sram_bytes": sram_bytes,
    }


def _check_indices(code: Code) -> None:
    spec = code.net.spec
    weights = (conv.weight.size for conv in (*spec.convs, spec.classifier))
    largest = max(*sizes_of(spec).values(), code.arena.size_bytes, *weights)
    if largest > _LIMIT_BYTES:
        raise UserError(f"format=c counts bytes in int32, and an array has {largest:,}; use a smaller network")


def _check_sram(graph: Graph, code: Code) -> int | None:
    """Return the profile's SRAM; UserError where arena, image and logits are larger."""
    if graph.profile is None:
        return None
    arena, image, logits = code.arena.size_bytes, code.input_bytes, code.logits_bytes
    sram, needed = int(graph.profile.sram_kib * 1024), arena + image + logits
    if needed > sram:
        parts = f"arena {arena:,}, image {image:,}, logits {logits:,}"
        raise UserError(
            f"format=c: the network needs {needed:,} bytes of SRAM ({parts}), the most of them at "
            f"{title_of(code.arena.peak)}, and hw={graph.profile.name} has {sram:,}; use a smaller network or image, "
            "or another hw="
        )
    return sram


def _images(graph: Graph) -> Tensor:
    """Return the first codes of the test images, at most _IMAGES [N, C, S, S]."""
    parts, missing = [], _IMAGES
    for x, _ in graph.batches():
        parts.append(graph.net.codes_of(x[:missing]).cpu())
        missing -= len(parts[-1])
        if missing == 0:
            break
    return torch.cat(parts)


def verify(graph: Graph, folder: Path, name: str) -> Evidence:
    """Compile the file and run it on 100 test images; UserError where that fails."""
    by, codes = version_of(compiler()), _images(graph)
    expected = graph.net.classify(codes)
    source, header = folder / f"{name}{SUFFIX}", folder / header_file(name)
    found = logits_of(source, header, identifier(name), codes, expected.shape[1])
    equal = int((found == expected).all(1).sum())
    return Evidence(images=len(codes), equal=equal, by=by, remedy="set CC to another compiler")
