"""Inference from the files alone: integers, numpy, and the codes of the integer path."""

import ast
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.exports.formats.text import write_text
from octo_exp.exports.text import run_numpy
from octo_exp.graph.spec import Image, InputSpec, ModelSpec
from tests.exports.text_helpers import FakeGraph, odd_model, quantized, random_codes
from tests.graph.helpers import conv_spec, pool_spec, tiny_model, tiny_resnet
from tests.refusals import assert_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "net"
    write_text(tiny_resnet(), folder)
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "net")


def test_a_thousand_images_of_lenet5(tmp_path):
    spec = quantized("lenet5")
    write_text(spec, tmp_path)
    codes = random_codes(spec, 1000)
    made = run_numpy.classify(run_numpy.load(tmp_path), codes.numpy())
    assert made.dtype == np.int8
    assert made.flags.c_contiguous
    assert made.tobytes() == FakeGraph(spec).net.classify(codes).numpy().tobytes()
    # Not one answer to all.
    assert len(np.unique(made.argmax(1))) > 1


def conv_by_hand(step: run_numpy.Step, spec, x: np.ndarray) -> np.ndarray:
    """The docstring of `text`, sum by sum, in Python's integers. x [I, H, W] -> [O, OH, OW]."""
    (kh, kw), (ph, pw) = spec.kernel_size, spec.padding
    per_in, per_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    y = np.empty((spec.out_channels, spec.out_size, spec.out_size), np.int64)
    for o, row, column in np.ndindex(y.shape):
        total = int(spec.bias[o])
        for i, r, c in np.ndindex(per_in, kh, kw):
            at = (row * spec.stride - ph + r, column * spec.stride - pw + c)
            inside = all(0 <= k < spec.in_size for k in at)
            code = int(x[o // per_out * per_in + i, *at]) if inside else spec.x_zero
            total += (code - spec.x_zero) * int(spec.weight[o, i, r, c])
        value, shift = (int(v[o]) for v in step.factors)
        y[o, row, column] = min(max((total * value + 2 ** (shift - 1) >> shift) + spec.y_zero, -128), 127)
    return y


@pytest.mark.parametrize("seed", range(3))
def test_a_convolution_is_the_docstring_s_sum(seed, tmp_path):
    spec = odd_model(seed)
    write_text(spec, tmp_path)
    steps = {step.fields["name"]: step for step in run_numpy.load(tmp_path)[1:]}
    rng = np.random.default_rng(seed)
    for index in (1, 2, 3):
        conv = spec.layers[index]
        x = rng.integers(-128, 128, (conv.in_channels, 1, conv.in_size, conv.in_size)).astype(np.int8)
        made = run_numpy._conv(steps[f"layer{index}"], x)
        assert np.array_equal(made[:, 0], conv_by_hand(steps[f"layer{index}"], conv, x[:, 0]))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_average_pools_round_halves_to_even(kernel):
    count = kernel * kernel
    sums = np.arange(-128 * count, 127 * count + 1)
    # Windows side by side whose codes have each sum that there is.
    base, more = np.divmod(sums, count)
    windows = base[:, None] + (np.arange(count) < more[:, None])
    x = windows.reshape(1, -1, kernel, kernel).astype(np.int8)
    step = run_numpy.Step("average_pool", {"kernel": str(kernel), "stride": str(kernel)})
    expected = [round(Fraction(int(total), count)) for total in sums]
    assert run_numpy._average_pool(step, x).ravel().tolist() == expected


@pytest.mark.parametrize("kernel", [2, 4])
def test_a_graph_with_ties_is_the_integer_path_s(kernel, tmp_path):
    rng = np.random.default_rng(kernel)
    image = Image(3, 8, 0.05, -7)
    first = conv_spec(rng, image, 4, 1)
    pool = pool_spec(first.gives, "average", kernel, kernel)
    image = first.gives._replace(size=pool.out_size)
    classifier = conv_spec(rng, image, 6, image.size, padding=0)
    spec = ModelSpec(input=InputSpec(scale=0.05, zero=-7), layers=(first, pool), classifier=classifier)
    write_text(spec, tmp_path)
    codes = random_codes(spec, 65)
    made = run_numpy.classify(run_numpy.load(tmp_path), codes.numpy())
    assert torch.equal(torch.from_numpy(made), FakeGraph(spec).net.classify(codes))


def test_it_stands_alone():
    """numpy, the exception and the writer of files, no torch, not the reader: an equal answer says something."""
    tree = ast.parse(Path(run_numpy.__file__).read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert others == {"numpy", "octo_exp.base.files", "octo_exp.base.errors"}
    # No float either: `/` parts paths alone.
    divisions = [n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div)]
    assert all(ast.unparse(n).startswith("folder / ") for n in divisions)
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, float)]
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "float"]


def test_the_command_line(folder, tmp_path):
    spec = tiny_resnet()
    codes = random_codes(spec, 5)
    np.save(tmp_path / "x.npy", codes.numpy())
    code = (
        "import sys; from octo_exp.exports.text.run_numpy import main; done = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(done)"
    )
    call = [sys.executable, "-c", code, str(folder), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    made = np.load(tmp_path / "y.npy")
    assert made.dtype == np.int8
    assert np.array_equal(made, FakeGraph(spec).net.classify(codes).numpy())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "x.npy", "y.npy"]


def call(tmp_path: Path, capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and the one line of a call that fails, which leaves no file."""
    before = sorted(tmp_path.rglob("*"))
    code = run_numpy.main(arguments)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    return code, shown.err


def test_wrong_calls(folder, tmp_path, capsys):
    assert call(tmp_path, capsys)[0] == 2
    code, message = call(tmp_path, capsys, str(folder), "x.npy", "y.npy", "z.npy")
    assert (code, "see python -m octo_exp.exports.text.run_numpy --help" in message) == (2, True)


GOOD = np.zeros((2, 3, 14, 14), np.int8)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (GOOD.astype(np.float32), "images must be int8 codes [N, 3, 14, 14], got float32 [2, 3, 14, 14]"),
        (GOOD[:, :2], "images must be int8 codes [N, 3, 14, 14], got int8 [2, 2, 14, 14]"),
        (GOOD[..., 1:], "got int8 [2, 3, 14, 13]"),
        (GOOD[0], "must be [N, C, S, S] with at least one image, got [3, 14, 14]"),
        (GOOD[:0], "must be [N, C, S, S] with at least one image, got [0, 3, 14, 14]"),
        (np.array([{}]), "x.npy is not a readable .npy"),
    ],
)
def test_images_that_do_not_serve(images, words, folder, tmp_path, capsys):
    np.save(tmp_path / "x.npy", images, allow_pickle=True)
    code, message = call(tmp_path, capsys, str(folder), str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))
    assert code == 2
    assert words in message


def test_files_that_do_not_serve(folder, tmp_path, capsys):
    x = str(tmp_path / "x.npy")
    assert_names(call(tmp_path, capsys, str(folder), x, "y.npy")[1], "x.npy ... .npy (")
    np.save(x, GOOD)
    code, message = call(tmp_path, capsys, str(folder), x, str(tmp_path / "none" / "y.npy"))
    assert (code, "y.npy cannot be written: No such file or directory; give another path" in message) == (2, True)
    # A folder stands where the file should go: nothing of it is left.
    code, message = call(tmp_path, capsys, str(folder), x, str(folder))
    assert (code, f"{folder} cannot be written" in message) == (2, True)
    code, message = call(tmp_path, capsys, str(tmp_path / "nowhere"), x, str(tmp_path / "y.npy"))
    assert code == 2
    assert "nowhere is no folder of format=text" in message
    (folder / "weight/layer0.bias.txt").unlink()
    code, message = call(tmp_path, capsys, str(folder), x, str(tmp_path / "y.npy"))
    assert code == 2
    assert "layer0.bias.txt: No such file or directory; export the graph again" in message


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("graph.txt", "version=1", "version=2", "graph.txt must begin with format version=1"),
        ("graph.txt", "name=classifier", "name=head", "and end with the classifier"),
        ("graph.txt", "input name", "start name", "must have an input after its format"),
        ("graph.txt", " channels=3", "", "'channels' is missing"),
        ("graph.txt", "size=14", "size=0", "must have an input after its format, of at least one channel"),
        ("graph.txt", "from=layer0", "source=layer0", "its steps do not fit"),
        ("graph.txt", "from=layer0", "from=layer7", "its steps do not fit ('layer7' is missing)"),
        ("graph.txt", "groups=1", "groups=0", "export the graph again"),
        ("graph.txt", "max_pool", "min_pool", "'min_pool' is missing"),
        ("weight/layer0.weight.txt", " ", " 0 ", "layer0.weight.txt: 451 numbers, not 1 x 6 x 75"),
        ("weight/layer0.weight.txt", " ", " x ", "'x'"),
        ("weight/layer0_scale_zero.txt", "x_zero", "zero", "'x_zero' is missing"),
    ],
)
def test_damage(name, old, new, words, folder):
    path = folder / name
    header, _, data = path.read_text().partition("\n")
    path.write_text(f"{header}\n{data.replace(old, new, 1)}")
    with pytest.raises(UserError) as error:
        run_numpy.classify(run_numpy.load(folder), GOOD)
    assert words in str(error.value)


def test_numbers_out_of_range(folder):
    path = folder / "weight/layer0.bias.txt"
    path.write_text("# \n" + "0\n" * 5 + f"{2**31}\n")
    with pytest.raises(UserError, match=r"layer0\.bias\.txt: a number beyond -2147483648 to 2147483647"):
        run_numpy.load(folder)
    path.write_text("# \n" + "0\n" * 5 + "\n")
    with pytest.raises(UserError, match=r"layer0\.bias\.txt: an empty line"):
        run_numpy.load(folder)


@pytest.mark.parametrize(("inputs", "fits"), [(2**17 - 1, True), (2**17, False)])
def test_sums_that_can_leave_int32(inputs, fits, tmp_path):
    sizes = {"in_channels": inputs, "out_channels": 1, "kernel_height": 1, "kernel_width": 1, "groups": 1}
    step = run_numpy.Step("conv", {"name": "a"} | {key: str(size) for key, size in sizes.items()})
    (tmp_path / "a.weight.txt").write_text("#\n" + " ".join(["-128"] * inputs) + "\n")
    (tmp_path / "a.bias.txt").write_text("#\n-2147483648\n")
    (tmp_path / "a_scale_zero.txt").write_text("#\nx_zero=0 y_zero=0\n0.1 8388608 28\n")
    if fits:
        assert run_numpy._with_numbers(step, tmp_path).offset.tolist() == [-(2**31)]
    else:
        with pytest.raises(ValueError, match=r"a\.weight\.txt: sums can leave int32"):
            run_numpy._with_numbers(step, tmp_path)


def test_batches_do_not_matter(written, monkeypatch):
    images = random_codes(tiny_resnet(), 7).numpy()
    steps = run_numpy.load(written)
    whole = run_numpy.classify(steps, images)
    monkeypatch.setattr(run_numpy, "BATCH", 3)
    assert np.array_equal(run_numpy.classify(steps, images), whole)


def test_sums_at_the_edge_of_int32(tmp_path):
    """The largest sums that are allowed: no product and no partial sum wraps."""
    spec = tiny_model()
    first = spec.layers[0]
    room = 2**31 - 1 - 255 * np.abs(first.weight.astype(np.int64)).reshape(len(first.bias), -1).sum(1)
    signs = np.where(np.arange(len(room)) % 2, 1, -1)
    first.bias[:] = room * signs
    write_text(spec, tmp_path)
    codes = random_codes(spec, 16)
    codes[0], codes[1] = 127, -128
    made = run_numpy.classify(run_numpy.load(tmp_path), codes.numpy())
    assert torch.equal(torch.from_numpy(made), FakeGraph(spec).net.classify(codes))
