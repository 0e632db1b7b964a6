"""Each kind of damage to a folder of format=text is named, with file and line."""

import contextlib
import shutil
from pathlib import Path

import pytest

from octo_exp.base.errors import UserError
from octo_exp.exports.formats.text import write_text
from octo_exp.exports.text import run_numpy
from octo_exp.exports.text.read import read_text
from tests.exports.text_helpers import random_codes
from tests.graph.helpers import same, tiny_resnet
from tests.refusals import assert_names

GRAPH, WEIGHT = "graph.txt", "weight/layer0.weight.txt"
BIAS, SCALES = "weight/layer3.shortcut0.bias.txt", "weight/layer2.body1_scale_zero.txt"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "net"
    write_text(tiny_resnet(), folder)
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "net")


def edit(path: Path, line: int, old: str, new: str) -> None:
    """Replace in a line, counted from 1; old "" is the whole line with its end."""
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1) if old else new
    path.write_text("".join(lines))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        read_text(folder)
    message = str(error.value)
    assert "\n" not in message
    return message


POOLED = "name=layer2.body0 from=layer1 channels=6 in_size=7 out_size=7 kernel=1 stride=1 padding=0"
# file, line, what is replaced ("" is the whole line), by what, words of the message.
DAMAGE = [
    (GRAPH, 1, "#", "%", "graph.txt, line 1: the first line must start with #"),
    (GRAPH, 2, "version=1", "version=2", "graph.txt, line 2: version 2 is unknown, this program reads 1"),
    (GRAPH, 2, "", "", "graph.txt, line 2: expected format (format), got input 'input'"),
    (GRAPH, 3, "scale=0.02", "scale=0.03", "graph.txt: ... x_scale"),
    (GRAPH, 3, "scale=0.02", "scale=nan", "graph.txt, line 3: 'nan' is no scale above 0"),
    (GRAPH, 3, "scale=0.02", "scale=1e999", "graph.txt, line 3: '1e999' is no scale above 0"),
    (GRAPH, 3, "zero=5", "zero=128", "graph.txt, line 3: a zero point of 128, it must be -128 to 127"),
    (GRAPH, 3, "zero=5", "zero=5.0", "graph.txt, line 3: '5.0' is no whole number"),
    (GRAPH, 3, "zero=5", "zero=" + 5000 * "5", "line 3: '" + 40 * "5" + "' is no whole number"),
    (GRAPH, 3, " zero=5", "", "graph.txt, line 3: zero= is missing"),
    (GRAPH, 3, "zero=5", "zero=5 zero=5", "graph.txt, line 3: 'zero=5' is unknown or there twice"),
    (GRAPH, 3, "zero=5", "zero=5 colour=3", "graph.txt, line 3: 'colour=3' is unknown"),
    (GRAPH, 3, "zero=5", "zero=5 ", "graph.txt, line 3: '' is unknown"),
    (GRAPH, 3, "channels=3", "channels=4", "graph.txt, line 3: channels=4 does not fit the other lines"),
    (GRAPH, 4, "conv ", "dense ", "graph.txt, line 4: 'dense' is no step; known are format, input, conv"),
    (GRAPH, 4, "groups=1", "groups=0", "graph.txt, line 4: sizes must be at least 1"),
    (GRAPH, 4, "groups=1", "groups=2", "graph.txt, line 4: sizes must be at least 1, and groups must divide"),
    (GRAPH, 4, "kernel_height=5 kernel_width=5", "kernel_height=-5 kernel_width=-5", "line 4: sizes must be at least"),
    (GRAPH, 4, "kernel_height=5", "kernel_height=4", "layer0.weight.txt, line 2: 75 numbers, the graph needs 60"),
    (GRAPH, 4, "padding_height=2", "padding_height=-2", "graph.txt, line 4: padding ... at least 0"),
    (GRAPH, 4, "stride=1", "stride=0", "graph.txt, line 4: sizes ... ints of at least 1"),
    (GRAPH, 4, "stride=1", "stride=2", "graph.txt, line 4: an image of 14 gives 7x7, the file says 14"),
    (GRAPH, 4, "out_channels=6", "out_channels=7", "layer0.weight.txt, line 7: the file holds 6 lines of data, the"),
    (GRAPH, 4, "depthwise=0", "depthwise=1", "graph.txt, line 4: a depthwise convolution has as many groups"),
    (GRAPH, 4, "from=input", "from=layer1", "graph.txt, line 4: from=layer1 does not fit the other lines"),
    (GRAPH, 4, "name=layer0", "name=../x", "graph.txt, line 4: expected layer0 (conv, max_pool, average_pool)"),
    (GRAPH, 5, "", "", "graph.txt, line 5: expected layer1 (conv, max_pool, average_pool), got conv 'layer2.body0'"),
    (GRAPH, 5, "in_size=14", "in_size=15", "graph.txt, line 5: an image of 15 gives 8x8, the file says 7"),
    (GRAPH, 5, "padding=1", "padding=2", "graph.txt, line 5: a pool's padding"),
    (GRAPH, 5, "max_pool", "average_pool", "graph.txt, line 5: an average pool has no padding"),
    (GRAPH, 6, "", f"max_pool {POOLED}\n", "graph.txt, line 6: expected layer2.body0 (conv), got max_pool"),
    (GRAPH, 8, "shortcut=layer1", "shortcut=layer0", "graph.txt, line 8: shortcut=layer0 does not fit"),
    (GRAPH, 8, "shift=", "shift=1", "graph.txt, line 8: shift=1"),
    (GRAPH, 8, "body_value=", "body_value=1", "graph.txt, line 8: body_value=1"),
    (GRAPH, 8, " y_scale=", " y_scale=1", "graph.txt: layer 3: body 0 wants codes of"),
    (GRAPH, 8, "y_zero=2", "y_zero=999", "graph.txt, line 8: a zero point of 999, it must be"),
    (GRAPH, 8, "", "", "graph.txt: layer 3: body 0 wants codes"),
    (GRAPH, 12, "", "", "graph.txt, line 12: expected layer3.add (add), got average_pool 'layer4'"),
    (GRAPH, 14, "", "", "graph.txt: classifier is missing at its end"),
    (GRAPH, 14, "\n", "\n\n", "graph.txt, line 15: '' is no step"),
    (GRAPH, 14, "\n", "", "graph.txt, line 14: the last line has no end: the file is cut off"),
    (WEIGHT, 2, " ", "  ", "layer0.weight.txt, line 2: '' is no whole number"),
    (WEIGHT, 3, " ", " x", "layer0.weight.txt, line 3: 'x"),
    (WEIGHT, 3, " ", " 1_0 ", "layer0.weight.txt, line 3: '1_0' is no whole number"),
    (WEIGHT, 3, " ", " 0.0 ", "layer0.weight.txt, line 3: '0.0' is no whole number"),
    (WEIGHT, 3, " ", " 0 ", "layer0.weight.txt, line 3: 76 numbers, the graph needs 75"),
    (WEIGHT, 7, "\n", " 0\n", "layer0.weight.txt, line 7: 76 numbers, the graph needs 75"),
    (WEIGHT, 5, "", "", "layer0.weight.txt, line 6: the file holds 5 lines of data, the graph needs 6"),
    (WEIGHT, 7, "\n", "\n1\n", "layer0.weight.txt, line 8: the file holds 7 lines of data, the graph needs 6"),
    (WEIGHT, 7, "\n", "\n\n", "layer0.weight.txt, line 8: the file holds 7 lines of data"),
    (WEIGHT, 4, "", " ".join(["128"] * 75) + "\n", "layer0.weight.txt, line 4: a number beyond -128 to 127"),
    (WEIGHT, 4, "", " ".join(["-129"] * 75) + "\n", "layer0.weight.txt, line 4: a number beyond -128 to 127"),
    (BIAS, 3, "", "2147483648\n", "layer3.shortcut0.bias.txt, line 3: a number beyond -2147483648 to 2147483647"),
    (BIAS, 3, "", "3 4\n", "layer3.shortcut0.bias.txt, line 3: 2 numbers, the graph needs 1"),
    (BIAS, 10, "", "", "layer3.shortcut0.bias.txt, line 9: the file holds 8 lines of data, the graph needs 9"),
    (SCALES, 2, "x_scale=", "x_scale=-", "layer2.body1_scale_zero.txt, line 2: '-0."),
    (SCALES, 2, "y_zero=", "y_zero=1e", "line 2: '1e"),
    (SCALES, 2, "x_zero=", "zero=", "layer2.body1_scale_zero.txt, line 2: 'zero="),
    (SCALES, 2, "", "", "line 7: the file holds 6 lines of data, the graph needs 7"),
    (SCALES, 4, " ", " 1", "layer2.body1_scale_zero.txt, line 4: value and shift are 1"),
    (SCALES, 4, "\n", "1\n", "layer2.body1_scale_zero.txt, line 4: value and shift are"),
    (SCALES, 4, "\n", " 1\n", "layer2.body1_scale_zero.txt, line 4: 4 numbers, a channel has 3"),
    (SCALES, 4, "", "0.1 8388608 28\n", "layer2.body1_scale_zero.txt, line 4: w_scale 0.1 is no float32; export"),
    (SCALES, 4, "", "-0.5 8388608 28\n", "layer2.body1_scale_zero.txt, line 4: '-0.5' is no scale above 0"),
    (SCALES, 4, "", "1e300 8388608 28\n", "layer2.body1_scale_zero.txt, line 4: its scales are beyond float32"),
    (SCALES, 4, "", "0.5 x 28\n", "layer2.body1_scale_zero.txt, line 4: 'x' is no whole number"),
    (SCALES, 4, "", "1e30 8388608 28\n", "layer2.body1_scale_zero.txt, line 4: w_scale 1e30 is no float32; export"),
    (SCALES, 4, "", f"{2.0**100} 8388608 28\n", "layer2.body1_scale_zero.txt, line 2: a factor of"),
]


@pytest.mark.parametrize(("name", "line", "old", "new", "words"), DAMAGE)
def test_damage_is_named(name, line, old, new, words, folder):
    edit(folder / name, line, old, new)
    message = refused(folder)
    assert_names(message, words)
    assert str(folder) in message


@pytest.mark.parametrize(
    ("scale", "words"),
    [("x_scale=1e300", "a factor of inf between"), ("y_scale=1e-300", "a factor of inf between")],
)
def test_scales_that_no_float32_holds(scale, words, folder):
    key = scale.partition("=")[0]
    for name in ("layer2.body1_scale_zero.txt",):
        path = folder / "weight" / name
        old = next(pair for pair in path.read_text().splitlines()[1].split() if pair.startswith(key))
        edit(path, 2, old, scale)
    assert f"layer2.body1_scale_zero.txt, line 2: {words}" in refused(folder)
    # Of an addition.
    shutil.rmtree(folder)
    write_text(tiny_resnet(), folder)
    old = next(pair for pair in (folder / GRAPH).read_text().splitlines()[7].split() if pair.startswith("shortcut_sc"))
    edit(folder / GRAPH, 8, old, "shortcut_scale=1e300")
    assert "graph.txt, line 8: factors of inf and" in refused(folder)


@pytest.mark.parametrize("name", [GRAPH, WEIGHT, BIAS, SCALES])
def test_files_that_are_no_text(name, folder):
    path, data = folder / name, (folder / name).read_bytes()
    path.write_bytes(data.replace(b"1", b"\xff", 1))
    assert refused(folder) == f"{path}: not ASCII; export the graph again"
    path.write_bytes(b"")
    assert refused(folder).startswith(f"{path}, line 1: the first line must")
    path.write_bytes(b"#\n")
    assert str(path) in refused(folder)
    path.unlink()
    assert (
        refused(folder) == f"{path}: cannot be read (No such file or directory); give a folder that format=text wrote"
    )
    path.mkdir()
    assert refused(folder).startswith(f"{path}: cannot be read (Is a directory)")


def test_a_file_of_no_layer_is_refused(folder):
    (folder / "weight/layer9.bias.txt").write_text("# \n1\n")
    assert refused(folder).endswith("layer9.bias.txt: no line of graph.txt has this file; export the graph again")


def test_steps_after_the_classifier_and_no_layer(folder):
    lines = (folder / GRAPH).read_text().splitlines(keepends=True)
    (folder / GRAPH).write_text("".join([*lines, lines[4]]))
    assert "graph.txt, line 15: a step after the classifier" in refused(folder)
    (folder / GRAPH).write_text("".join([*lines[:3], lines[-1]]))
    assert "graph.txt, line 4: a graph needs a layer before its classifier" in refused(folder)


def test_line_ends_and_the_order_of_keys_do_not_matter(folder):
    for path in folder.rglob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    first = (folder / SCALES).read_text().splitlines()[1]
    edit(folder / SCALES, 2, first, " ".join(reversed(first.split())))
    kind, *pairs = (folder / GRAPH).read_text().splitlines()[7].split()
    edit(folder / GRAPH, 8, " ".join([kind, *pairs]), " ".join([kind, *reversed(pairs)]))
    assert same(read_text(folder), tiny_resnet())


@pytest.mark.parametrize(("name", "line", "old", "new", "words"), DAMAGE)
def test_numpy_takes_damage_as_the_user_s_mistake_or_does_not_see_it(name, line, old, new, words, folder):
    """It reads less: what it does not need it does not check, but nothing else than UserError leaves it."""
    edit(folder / name, line, old, new)
    with contextlib.suppress(UserError):
        run_numpy.classify(run_numpy.load(folder), random_codes(tiny_resnet(), 2).numpy())
