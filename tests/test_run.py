"""The life of a run: folder, repeat, evaluate, and checkpoints that are none."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.kernels.ops import backend
from tests.run_helpers import OCTO, SMALL, go


@pytest.fixture(scope="module")
def octo(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("octo")
    return folder, go(folder, *OCTO)


def test_the_folder_holds_what_a_run_leaves(octo):
    folder, results = octo
    on_disk = json.loads((folder / "results.json").read_text())
    assert on_disk == json.loads(json.dumps(results))
    for name in (
        "config.yaml",
        "metrics.csv",
        "cost.csv",
        "memory.csv",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    ):
        assert (folder / name).is_file(), name
    for profile in ("systolic_16x16", "tpu_v1"):
        parts = [results[f"cost/{profile}/{part}_cycles"] for part in ("forward", "grad_input", "grad_weight")]
        assert all(isinstance(part, int) and part > 0 for part in parts)
        assert sum(parts) == results[f"cost/{profile}/train_step_cycles"]
    assert results["cost/convention"] == "exact"
    assert results["cost/grad_input_form"] == "col2im"
    for key in ("test/acc", "val/acc", "train/images_per_s", "memory/saved_for_backward_mib", "memory/peak_mib"):
        assert results[key] > 0, key
    assert results["seed"] == 0
    assert results["seconds"] > 0
    assert {"octo-exp", "torch", "lightning", "python"} <= set(results["versions"])
    assert results["config"]["quant"]["name"] == "octo"
    assert len(results["weights_sha256"]) == 64
    assert results["kernel"] == "torch"
    assert results["quantized_layers"] == ["classifier.0"]
    assert results["float_layers"] == {"features.0": "quant.skip: first", "classifier.2": "quant.skip: last"}
    assert results["int8_products"] == backend("torch", "cpu").multiplier
    assert 0.9 < results["quant/min_g_cosine"] <= 1.0


def test_metrics_are_in_the_csv(octo):
    header = (octo[0] / "metrics.csv").read_text().splitlines()[0].split(",")
    wanted = {"train/loss", "val/acc", "test/acc", "quant/classifier.0/g_cosine", "quant/classifier.0/x_saturated"}
    assert wanted <= set(header)


def test_same_seed_same_weights_and_another_seed_others(octo, tmp_path):
    again = go(tmp_path / "again", *SMALL, "quant=octo")
    assert again["weights_sha256"] == octo[1]["weights_sha256"]
    other = go(tmp_path / "other", *SMALL, "quant=octo", "seed=1")
    assert other["weights_sha256"] != octo[1]["weights_sha256"]


def test_the_last_checkpoint_is_the_last_one_though_no_better(tmp_path):
    # Nothing is learnt, so the first epoch stays the best.
    go(tmp_path, *SMALL, "quant=fp32", "optim.optimizer.lr=0.0", "trainer.max_epochs=3")
    read = {name: torch.load(tmp_path / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last")}
    assert (read["best"]["epoch"], read["last"]["epoch"]) == (0, 2)


def test_a_finished_run_is_not_run_again(octo, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(octo[0], folder)
    before = (folder / "results.json").stat().st_mtime_ns
    assert go(folder, *OCTO)["weights_sha256"] == octo[1]["weights_sha256"]
    assert (folder / "results.json").stat().st_mtime_ns == before
    assert go(folder, *OCTO, "optim.optimizer.lr=0.01")["weights_sha256"] != octo[1]["weights_sha256"]


@pytest.mark.parametrize("place", ["", "checkpoints/last.ckpt"])
def test_evaluation_of_a_checkpoint_repeats_the_accuracy(octo, tmp_path, place):
    folder, results = octo
    evaluated = go(tmp_path, *SMALL, "quant=octo", "hw=[systolic_32x32]", "train=false", f"ckpt={folder / place}")
    assert evaluated["test/acc"] == results["test/acc"]
    assert evaluated["weights_sha256"] == results["weights_sha256"]
    assert evaluated["cost/systolic_32x32/train_step_cycles"] > 0


def test_unreadable_checkpoints_name_the_file(tmp_path, octo):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes((octo[0] / "checkpoints/last.ckpt").read_bytes()[:500])
    with pytest.raises(UserError, match=r"broken\.ckpt is not .* checkpoint"):
        go(tmp_path / "a", *SMALL, "quant=octo", "train=false", f"ckpt={broken}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no checkpoints/last\.ckpt"):
        go(tmp_path / "b", *SMALL, f"init_from={tmp_path / 'empty'}")
    with pytest.raises(UserError, match="made by another model, scheme or data set"):
        go(tmp_path / "c", *SMALL, "quant=lac", "quant.skip=[]", "train=false", f"ckpt={octo[0]}")
