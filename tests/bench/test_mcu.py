"""The benchmark of microcontroller graphs on a tiny one; what the released one keeps under its published update."""

import json

import pytest
import torch

from octo_exp.bench import graphs
from octo_exp.graph.files.writer import write_model
from octo_exp.graph.train.update.convolutions import LayerShape
from octo_exp.kernels.cpu import graph_loops
from tests.graph.helpers import model_file, tiny_model

# Of nine convolutions the last three; inputs of the last, half of its channels.
SPARSE = ["update.sparse.n_bias=3", "update.sparse.weight_idx=[8]", "update.sparse.ratio=0.5"]


@pytest.fixture
def tiny(tmp_path):
    write_model(tiny_model(), tmp_path / "tiny.pkl")
    return [f"model.path={tmp_path / 'tiny.pkl'}", "model.image_size=16"]


def arguments(*overrides: str, updates: str = "full,last_k,head_only") -> list[str]:
    return ["--models", "graph", "--updates", updates, "--batches", "2,1", "--rounds", "1", *overrides]


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_tiny_step(tiny, tmp_path, capsys):
    file, few = tmp_path / "mcu.json", ["update.sparse.n_bias=0"]
    assert graphs.main(arguments(*tiny, "--json", str(file), updates="full")) == 0
    result = json.loads(file.read_text())
    assert result["modes"]["graph"]["ratio"]["ratio"] > 0
    assert set(result["modes"]["graph"]["milliseconds"]) == {"float_order", "integer"}
    assert list(result["updates"]) == ["2", "1"]
    full = result["updates"]["2"]["full"]
    assert full["ratio"]["ratio"] == 1
    assert "float_order / integer" in capsys.readouterr().out
    assert graphs.main(arguments(*tiny, *few, "--json", str(file), updates="full,head_only")) == 0
    frozen = json.loads(file.read_text())["updates"]["2"]
    assert 0 < frozen["full"]["saved_bytes"] == frozen["head_only"]["saved_bytes"] < full["saved_bytes"]


def test_what_a_sparse_update_keeps(tiny):
    subject = graphs.build("graph", "full", [*tiny, *SPARSE], mode="integer", batch_size=2)
    # Bits of three convolutions, codes of the last one's kept inputs, weights that a gradient passes: but the first's.
    assert graphs.saved_by_convs(subject) == [0] * 6 + [1, 2, 3]
    full = graphs.build("graph", "full", tiny, mode="integer", batch_size=2)
    assert graphs.saved_by_convs(full) == [2] + [3] * 8
    graphs.check_same(full, subject, "sparse")
    graphs.check_frozen(subject, "sparse")
    head = graphs.build("graph", "head_only", tiny, mode="integer", batch_size=2)
    assert graphs.saved_by_convs(head) == [0] * 9
    # Images of 16 x 8 x 8, 16 x 4 x 4 and 10 x 4 x 4 bits, and 8 of 16 channels of 4 x 4 codes.
    extra = 2 * (16 * 64 // 8 + 16 * 16 // 8 + 10 * 16 // 8 + 8 * 16)
    assert graphs.saved_bytes(subject) - graphs.saved_bytes(head) == extra


def test_a_tensor_that_a_frozen_convolution_keeps_is_refused(tiny, monkeypatch, capsys):
    right = graphs.saved_by_convs
    # The first convolution's bits, as if they were another's.
    monkeypatch.setattr(graphs, "saved_by_convs", lambda subject: [1, *right(subject)[1:]])
    assert graphs.main(arguments(*tiny, updates="full")) == 0
    capsys.readouterr()
    assert graphs.main(arguments(*tiny, updates="full,head_only")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "frozen convolutions keep tensors, 1 of them" in captured.err.replace("\n", " ")


def test_another_step_is_not_printed(tiny, monkeypatch, capsys):
    def wrong(g, bits, scale, h, sums, _right=graph_loops.mask_and_scale):
        _right(g, bits, scale, h, sums)
        h *= 1.001

    with monkeypatch.context() as patch:
        patch.setattr(graph_loops, "mask_and_scale", wrong)
        assert graphs.main(arguments(*tiny)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "another gradient" in captured.err.replace("\n", " ")

    def shifted(*operands, _right=graph_loops.rescale):
        _right(*operands)
        operands[5][0, 0] ^= 64

    monkeypatch.setattr(graph_loops, "rescale", shifted)
    assert graphs.main(arguments(*tiny)) == 1
    assert "does not give the logits" in capsys.readouterr().err.replace("\n", " ")


def test_a_missing_file_is_one_line(tmp_path, capsys):
    assert graphs.main(arguments(f"model.path={tmp_path}/no.pkl")) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no.pkl: no such file" in captured.err.replace("\n", "")
    assert "Traceback" not in captured.err


@pytest.mark.data
@pytest.mark.parametrize("mode", ["integer", "float_order"])
def test_the_published_update_keeps_what_its_account_says_and_nothing_of_frozen_convolutions(mode):
    overrides = [f"model.path={model_file('mcunet-5fps')}"]
    subject = graphs.build("mcunet_5fps", "mcunet_5fps_99kb", overrides, mode=mode, batch_size=2)
    kept = graphs.saved_by_convs(subject)
    assert kept[:20] == [0] * 20
    # Bits and weight; codes too where the weight trains. Before the first that trains no gradient passes.
    assert kept[20:] == [1] + [3 if i in (21, 24, 27, 30, 36, 39) else 2 for i in range(21, 42)]
    graphs.check_frozen(subject, mode)
    head = graphs.build("mcunet_5fps", "head_only", overrides, mode=mode, batch_size=2)
    kept_inputs = {21: 40, 24: 48, 27: 48, 30: 48, 36: 12, 39: 24}
    shapes = [LayerShape.of(conv) for conv in subject.net.convs]
    account = sum(shape.out_channels * shape.out_size[0] ** 2 // 8 for shape in shapes[20:])
    account += sum(shapes[i].in_size[0] ** 2 * channels for i, channels in kept_inputs.items())
    # The paper's 29.875 KB of activations, less the head's input.
    assert account == 29.875 * 1024 - 160
    # It does not count the bits of additions: after convolution 20 of 40 channels, and four of the later blocks.
    additions = (40 * 64 + 2 * 48 * 64 + 2 * 96 * 16) // 8
    assert graphs.saved_bytes(subject) - graphs.saved_bytes(head) == 2 * (account + additions)
