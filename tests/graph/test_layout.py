"""Our own layout of a model file: what it holds reads back identically, and what it does not know is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.graph.files.layout import FORMAT, from_dict, to_dict
from octo_exp.graph.files.published import to_published
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.files.writer import model_bytes, write_model
from octo_exp.graph.spec import BlockSpec, InputSpec, ModelSpec
from tests.graph.helpers import conv_spec, pool_spec, same, tiny_model, tiny_resnet
from tests.graph.random_models import random_model
from tests.graph.test_files import change_of, refusal, write


@pytest.mark.parametrize("spec", [tiny_resnet(), *map(random_model, range(20))])
def test_a_model_reads_back_identically(spec, tmp_path):
    assert to_published(spec) is None
    write_model(spec, tmp_path / "x.pkl")
    assert same(read_model(tmp_path / "x.pkl"), spec)
    assert same(from_dict(to_dict(spec)), spec)
    # The same container as the published files: the four globals are enough, and torch reads it.
    assert torch.load(tmp_path / "x.pkl", weights_only=False)["format"] == FORMAT
    assert model_bytes(spec) == model_bytes(read_model(tmp_path / "x.pkl"))


# What the published layout has no words for.
BEYOND = {
    "padding": lambda spec: _padded(spec, 0),
    "input": lambda spec: {"input": InputSpec(scale=spec.convs[0].x_scale, zero=0)},
    "no pool": lambda spec: {"layers": spec.layers[:-1], "classifier": _whole(spec)},
    "pool's stride": lambda spec: {"layers": (*spec.layers[:-1], replace(spec.layers[-1], stride=1))},
    "pool's kind": lambda spec: {"layers": (*spec.layers[:-1], replace(spec.layers[-1], kind="max"))},
    "a layer alone": lambda spec: {"layers": (*spec.layers[:1], *spec.layers[1].body, *spec.layers[2:])},
    "a shortcut": lambda spec: _shortcut(spec),
    "one in a block": lambda spec: {
        "layers": (
            spec.layers[0],
            *(BlockSpec(body=(conv,), shortcut=(), residual=None) for conv in spec.layers[1].body),
            *spec.layers[2:],
        )
    },
}


def _padded(spec: ModelSpec, padding: int) -> dict[str, Any]:
    """The first convolution alone, with this padding, and a pool of the whole image."""
    rng = np.random.default_rng(0)
    first = conv_spec(rng, spec.convs[0].takes, 8, 3, padding=padding)
    pool = pool_spec(first.gives, "average", first.out_size, first.out_size)
    return {"layers": (first, pool), "classifier": conv_spec(rng, first.gives._replace(size=1), 5, 1)}


def _shortcut(spec: ModelSpec) -> dict[str, Any]:
    """The second block's addition, of its input through a convolution."""
    block, add = spec.layers[2], spec.layers[2].residual
    conv = conv_spec(np.random.default_rng(0), block.body[0].takes, add.channels, 1)
    block = replace(block, shortcut=(conv,), residual=replace(add, x_scale=conv.y_scale, x_zero=conv.y_zero))
    return {"layers": (*spec.layers[:2], block, *spec.layers[3:])}


def _whole(spec: ModelSpec) -> Any:
    return conv_spec(np.random.default_rng(0), spec.convs[-1].gives, 5, spec.convs[-1].out_size, padding=0)


@pytest.mark.parametrize("name", BEYOND)
def test_what_the_published_layout_cannot_say_is_kept(name, tmp_path):
    assert to_published(tiny_model()) is not None
    assert to_published(replace(tiny_model(), **_padded(tiny_model(), 1))) is not None
    assert "format" not in to_dict(tiny_model())
    spec = replace(tiny_model(), **BEYOND[name](tiny_model()))
    assert to_dict(spec)["format"] == FORMAT
    write_model(spec, tmp_path / "x.pkl")
    assert same(read_model(tmp_path / "x.pkl"), spec)


BROKEN = [
    ("format", "octo_exp.graph 2", "written by another version"),
    ("format", 1, "format must be str"),
    ("extra", 1, "has the field 'extra'"),
    ("layers", KeyError, "lacks the field 'layers'"),
    ("layers", [], "a model needs a convolution"),
    ("input.scale", 1, "input: scale must be float"),
    ("input.scale", 0.5, "first convolution's x_scale is not the input's"),
    ("input.zero", 128, "input: input_zero must be"),
    ("layers.0.layer", "norm", "layer 0: must be a dict whose field 'layer' is one of conv, pool, block"),
    ("layers.0.layer", [], "layer 0: must be a dict whose field"),
    ("layers.1", 3, "layer 1: must be a dict whose field"),
    ("layers.0.bits", 8, "layer 0: has the field 'bits'"),
    ("layers.0.padding", 1, "gives 12x12, the file says 14"),
    ("layers.0.padding", (1, -1), "padding must be ints of at least 0"),
    ("layers.0.padding", "1", "padding must be an int or a pair"),
    ("layers.1.kind", None, "layer 1: kind must be str"),
    ("layers.1.kind", "min", "layer 1: a pool's kind must be"),
    ("layers.1.channels", 5, "layer 1 wants (5, 14) (channels, side), (6, 14) reaches it"),
    ("layers.2.body", [], "layer 2: a block needs a convolution"),
    ("layers.2.body.1", None, "layer 2: body 1: must be a dict"),
    ("layers.2.body.0.x_zero", 77, "layer 2: body 0 wants codes of"),
    ("layers.3.residual", None, "layer 3: a shortcut needs an addition"),
    ("layers.3.residual.y_zero", 0.0, "layer 3: residual: y_zero must be int"),
    ("layers.3.residual.x_scale", 9.0, "layer 3: residual wants codes of"),
    ("layers.3.shortcut", (), "layer 3: shortcut must be list"),
    ("layers.3.shortcut", [], "layer 3: residual wants (9, 4) (channels, side), (6, 7) reaches it"),
    ("layers.4.out_size", 1, "layer 4: an image of 4 gives 2x2"),
    ("classifier.padding", (1, 1), "classifier: an image of 2 gives"),
    ("classifier.depthwise", None, "classifier: depthwise must be bool"),
    ("classifier.x_zero", 99, "the classifier wants codes of"),
]


@pytest.mark.parametrize(("path", "value", "message"), BROKEN, ids=[m for *_, m in BROKEN])
def test_a_broken_model_is_refused_by_name(path, value, message, tmp_path):
    tree = to_dict(tiny_resnet())
    change_of(path, value)(tree)
    assert message in refusal(write(tmp_path / "x.pkl", tree))


def test_a_body_that_does_not_fit_its_shortcut_is_refused():
    spec = tiny_resnet()
    block = spec.layers[2]
    narrow = conv_spec(np.random.default_rng(0), block.body[0].gives, 5, 1)
    block = replace(block, body=(block.body[0], narrow))
    with pytest.raises(UserError, match="layer 2: residual adds images of different shapes"):
        replace(spec, layers=(*spec.layers[:2], block, *spec.layers[3:]))
