"""Model files: what is written reads back identically, and what is not a model is refused in one line, never run."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.graph.files.layout import from_dict, to_dict
from octo_exp.graph.files.reader import GLOBALS, read_model
from octo_exp.graph.files.writer import model_bytes, write_model
from octo_exp.graph.spec import BlockSpec
from tests.graph.helpers import model_file, same, tiny_model

# name -> convolutions, blocks, additions, weights and biases, multiply-adds, head's inputs, dead channels.
TABLE = {
    "mbv2-w0.35": (51, 17, 10, 244_448, 16_646_912, 112, 25),
    "mcunet-5fps": (42, 14, 7, 469_224, 22_453_504, 160, 64),
    "proxyless-w0.3": (60, 20, 13, 326_232, 18_619_904, 96, 35),
}


@pytest.mark.data
@pytest.mark.parametrize("name", TABLE)
def test_a_released_model_is_what_its_table_says(name):
    spec = read_model(model_file(name))
    blocks = [layer for layer in spec.layers if isinstance(layer, BlockSpec)]
    additions = sum(block.residual is not None for block in blocks)
    counts = (len(spec.convs), len(blocks), additions, spec.params, spec.macs)
    assert (*counts, spec.classifier.in_channels, spec.dead_channels) == TABLE[name]


@pytest.mark.data
@pytest.mark.parametrize("name", TABLE)
def test_a_released_model_is_written_as_it_was(name, tmp_path):
    path = model_file(name)
    spec = read_model(path)
    write_model(spec, tmp_path / "again.pkl")
    assert same(read_model(tmp_path / "again.pkl"), spec)
    released, again = (torch.load(p, weights_only=False) for p in (path, tmp_path / "again.pkl"))
    assert same(released, again)
    pickles = [zipfile.ZipFile(p).read("archive/data.pkl") for p in (path, tmp_path / "again.pkl")]
    assert pickles[0] == pickles[1]


def test_a_written_model_reads_back(tmp_path):
    spec = tiny_model()
    write_model(spec, tmp_path / "tiny.pkl")
    assert same(read_model(tmp_path / "tiny.pkl"), spec)
    assert same(torch.load(tmp_path / "tiny.pkl", weights_only=False), to_dict(spec))
    assert same(from_dict(to_dict(spec)), spec)
    assert model_bytes(spec) == model_bytes(tiny_model())
    assert not same(spec, tiny_model(1))


def test_arrays_in_column_order_are_read(tmp_path):
    spec = tiny_model()
    tree = to_dict(spec)
    tree["classifier"]["params"]["weight"] = np.asfortranarray(spec.classifier.weight)
    write(tmp_path / "x.pkl", tree)
    assert same(read_model(tmp_path / "x.pkl"), spec)


def test_an_int_serves_as_kernel_size(tmp_path):
    tree = to_dict(tiny_model())
    tree["first_conv"]["kernel_size"] = 3
    write(tmp_path / "x.pkl", tree)
    assert read_model(tmp_path / "x.pkl").convs[0].kernel_size == (3, 3)


def write(path: Path, tree: Any, data: bytes | None = None, **options: Any) -> Path:
    """A zip as torch.save's, of any tree, or of any pickle."""
    data = pickle.dumps(tree, protocol=2) if data is None else data
    data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert path.name in message
    return message


class _Trap:
    """Runs a command when it is unpickled without care."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_any_other_global_is_refused_by_name_and_not_run(tmp_path):
    tree = to_dict(tiny_model()) | {"feature_mix": _Trap(tmp_path / "trapped")}
    assert "posix.mkdir" in refusal(write(tmp_path / "x.pkl", tree))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "builtins getattr", "numpy load", "numpy.core.multiarray scalar", "_codecs decode", "os system"],
)
def test_globals_beside_the_four_are_refused(name, tmp_path):
    module, attribute = name.split()
    data = f"c{module}\n{attribute}\n.".encode()
    assert f"{module}.{attribute}" in refusal(write(tmp_path / "x.pkl", None, data))


def test_there_are_four_globals():
    assert sorted(GLOBALS) == [
        ("_codecs", "encode"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
    ]


# Pickles that use the four globals against their purpose.
HOSTILE = {
    "a codec that is not latin1": b"c_codecs\nencode\n(X\x01\x00\x00\x00bX\x05\x00\x00\x00rot13tR.",
    "state set on a global": b"c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",
    "state set on a class": b"cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",
    "an array of objects": b"cnumpy\ndtype\n(X\x01\x00\x00\x00OI00\nI01\ntR.",
    "an array never filled": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tX\x01\x00\x00\x00btR.",
    "an array of another class": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tX\x01\x00\x00\x00btR.",
    "a list in itself": b"]q\x00h\x00a.",
    "nothing": b"",
    "no stop": b"}",
    "a persistent id": b"X\x01\x00\x00\x00aQ.",
    "no pickle": b"hello",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused(data, tmp_path):
    refusal(write(tmp_path / "x.pkl", None, data))


def test_no_other_codec_is_looked_up(tmp_path):
    assert "not in latin1" in refusal(write(tmp_path / "x.pkl", None, HOSTILE["a codec that is not latin1"]))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(share, tmp_path):
    data = model_bytes(tiny_model())
    (tmp_path / "x.pkl").write_bytes(data[: int(share * len(data))])
    assert "truncated" in refusal(tmp_path / "x.pkl")


def test_flipped_bytes_are_refused(tmp_path):
    data = bytearray(model_bytes(tiny_model()))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "x.pkl").write_bytes(data)
    refusal(tmp_path / "x.pkl")


def test_other_zips_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "none.pkl", "w") as archive:
        archive.writestr("archive/readme", "x")
    assert "0 entries" in refusal(tmp_path / "none.pkl")
    with zipfile.ZipFile(tmp_path / "two.pkl", "w") as archive:
        archive.writestr("a/data.pkl", "x")
        archive.writestr("b/data.pkl", "x")
    assert "2 entries" in refusal(tmp_path / "two.pkl")
    tree = to_dict(tiny_model())
    assert "compressed" in refusal(write(tmp_path / "x.pkl", tree, compression=zipfile.ZIP_DEFLATED))
    torch.save(torch.zeros(3), tmp_path / "tensor.pkl")
    assert "torch._utils._rebuild_tensor_v2" in refusal(tmp_path / "tensor.pkl")
    assert "no such file" in refusal(tmp_path / "absent.pkl")
    assert "no such file" in refusal(tmp_path)


def change_of(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: dict[str, Any]) -> None:
        *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        node: Any = tree
        for part in parts:
            node = node[part]
        if value is KeyError:
            del node[last]
        else:
            node[last] = value

    return change


# What is changed -> what the message says.
BROKEN = [
    (change_of("first_conv", KeyError), "lacks the field 'first_conv'"),
    (change_of("extra", 1), "has the field 'extra'"),
    (change_of("feature_mix", {}), "feature_mix must be None"),
    (change_of("blocks", {}), "blocks must be list, got dict"),
    (change_of("blocks.1.se", {}), "block 1: se must be None"),
    (change_of("blocks.0.depthwise", None), "block 0: depthwise: must be a dict"),
    (change_of("blocks.2.pointwise2.act", "relu"), "block 2: pointwise2: act must be None"),
    (change_of("blocks.1.pointwise1.params.bits", 8), "block 1: pointwise1: has the field 'bits'"),
    (change_of("blocks.1.residual.params.z", 8), "block 1: residual: has the field 'z'"),
    (change_of("blocks.1.residual.kernel_size", 1), "only additions"),
    (
        change_of("blocks.1.residual.in_channel", 7),
        "layer 2: residual wants (7, 8) (channels, side), (6, 8) reaches it",
    ),
    (change_of("blocks.1.residual.params.y_scale", -1.0), "block 1: residual: y_scale must be"),
    (change_of("blocks.2.residual", {"in_channel": 6, "in_shape": 8, "params": {}}), "block 2: residual: lacks"),
    (change_of("first_conv.groups", True), "first_conv: groups must be int, got bool"),
    (change_of("first_conv.groups", 2), "first_conv: groups=2 must divide"),
    (change_of("first_conv.stride", 0), "first_conv: sizes must be ints"),
    (change_of("first_conv.stride", 1), "the file says 8"),
    (change_of("first_conv.depthwise", True), "as many groups as channels"),
    (change_of("first_conv.kernel_size", (3, 3, 3)), "first_conv: kernel_size must be an int"),
    (change_of("first_conv.in_shape", "16"), "in_shape must be int, got str"),
    (change_of("first_conv.params.weight", [1]), "weight must be an array, got list"),
    (change_of("first_conv.params.weight", np.zeros((8, 3, 3, 3), np.float32)), "weight must be an array of int8"),
    (change_of("first_conv.params.weight", np.zeros((8, 3, 5, 5), np.int8)), "weight must be [8, 3, 3, 3]"),
    (change_of("first_conv.params.bias", np.zeros(7, np.int32)), "bias must be [8], got [7]"),
    (change_of("first_conv.params.bias", np.zeros(8, ">i4")), "not little-endian"),
    (change_of("first_conv.params.bias", np.zeros(8, np.int64)), "another type than i1, i4, f4"),
    (change_of("first_conv.params.w_scales", np.zeros(8, np.float32)), "w_scales must be above 0"),
    (change_of("first_conv.params.x_scale", float("nan")), "x_scale must be a float above 0"),
    (change_of("first_conv.params.x_scale", 1), "x_scale must be float, got int"),
    (change_of("first_conv.params.y_zero", 128), "y_zero must be an int of -128 to 127"),
    (change_of("first_conv.out_channel", 4), "weight must be [4, 3, 3, 3], got [8, 3, 3, 3]"),
    (change_of("classifier.in_channel", 9), "classifier: weight must be"),
    (change_of("classifier.stride", 2), "a convolution of the whole image"),
    (change_of("blocks", []), "the classifier wants (10, 1) (channels, side), (8, 1) reaches it"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[m for _, m in BROKEN])
def test_a_broken_model_is_refused_by_name(change, message, tmp_path):
    tree = to_dict(tiny_model())
    change(tree)
    assert message in refusal(write(tmp_path / "x.pkl", tree))


def test_layers_that_do_not_follow_are_refused():
    spec = tiny_model()
    with pytest.raises(UserError, match=r"layer 1: body 0 wants \(6, 8\) \(channels, side\), \(8, 8\) reaches it"):
        replace(spec, layers=(spec.layers[0], *spec.layers[2:]))


def test_dead_channels_are_named():
    spec = tiny_model().convs[0]
    scales = spec.w_scales.copy()
    scales[[2, 5]] = 9e-6
    scales[3] = 1e-5
    assert replace(spec, w_scales=scales).dead_channels == (2, 5)


def test_nothing_is_written_half(tmp_path, monkeypatch):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        write_model(tiny_model(), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.pkl"]
    with pytest.raises(UserError, match="cannot be written"):
        write_model(tiny_model(), tmp_path / "no folder" / "x")


def test_the_pickle_of_a_model_holds_no_name_of_numpy_2():
    data = zipfile.ZipFile(io.BytesIO(model_bytes(tiny_model()))).read("archive/data.pkl")
    assert b"numpy._core" not in data
    assert data.count(b"cnumpy.core.multiarray\n_reconstruct\n") == 1
